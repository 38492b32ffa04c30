"""Everything by comprehension over one flat list of nodes; the session by a provider list of its own."""
from itertools import chain

import onnxruntime as ort

END = "_kernel_time"


def flat(graph):
    return [node for top in graph.node for node in [top, *chain.from_iterable(flat(a.g) for a in top.attribute if a.HasField("g")), *chain.from_iterable(flat(g) for a in top.attribute for g in a.graphs)]]


def work(events):
    return [(e["name"][:-len(END)], e["args"]["op_name"], e["args"]["provider"], int(e["args"]["output_size"])) for e in events if e["cat"] == "Node" and e["name"][-len(END):] == END]


def nodes_that_ran(events):
    seen = [entry[:3] for entry in work(events)]
    return [(*node, seen.count(node)) for node in dict.fromkeys(seen)]


def copies(optimized, events):
    nodes, done = flat(optimized.graph), work(events)

    def places(node):
        return {p for n, o, p, _ in done if (n, o) == (node.name, node.op_type)}

    def guilty(copy):
        made = [n for n in nodes if copy.input[0] in n.output]
        up = copy.op_type == "MemcpyFromHost"
        asked = made if up and made else [n for n in nodes if (copy.input[0] if up else copy.output[0]) in n.input and n.op_type != "MemcpyFromHost"]
        return sorted({n.name for n in asked if places(copy) and not places(n) <= places(copy)})

    return [{"tensor": (c.output if c.op_type == "MemcpyToHost" else c.input)[0], "node": c.name, "direction": {"MemcpyFromHost": "to device", "MemcpyToHost": "to host"}[c.op_type],
             "bytes": max([s for n, o, _, s in done if (n, o) == (c.name, c.op_type)] or [0]), "because": guilty(c)} for c in nodes if c.op_type in ("MemcpyFromHost", "MemcpyToHost")]


def problems(events, optimized, wanted, allowed=(), copy_bytes=0):
    ran = [n for n in nodes_that_ran(events) if n[1] not in ("MemcpyFromHost", "MemcpyToHost")]
    if all(n[2] != wanted for n in ran):
        return [f"{wanted} did nothing; {sorted({n[2] for n in ran})} did"]
    return [f"{n}/{o}: {p} x{r}" for n, o, p, r in ran if not (p == wanted or o in allowed)] + \
        [f"{c['direction']} {c['tensor']} = {c['bytes']} B" for c in copies(optimized, events) if c["bytes"] > copy_bytes]


def open_checked(model, providers, wanted, allowed=()):
    names = [p if isinstance(p, str) else p[0] for p in providers]
    if wanted not in names or wanted not in ort.get_available_providers():
        raise RuntimeError(f"{wanted} is not among {names}, or not in this package: {ort.get_available_providers()}")
    settings = ort.SessionOptions()
    settings.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    session = ort.InferenceSession(model, sess_options=settings, providers=list(providers), enable_fallback=False)
    parts = session.get_provider_graph_assignment_info()
    strangers = [f"{part.ep_name}: {node.name} is a {node.op_type}" for part in parts for node in part.get_nodes() if part.ep_name != wanted and node.op_type not in allowed]
    if strangers or wanted not in [part.ep_name for part in parts]:
        raise RuntimeError(f"not on {wanted}: {strangers or 'anything'}")
    return session
