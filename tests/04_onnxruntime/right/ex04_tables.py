"""Regular expressions for the events, a class for the graph, and `disable_fallback` in the place of the constructor's argument."""
import re

import onnx
import onnxruntime

RUN = re.compile(r"(?P<name>.*)_kernel_time\Z", re.DOTALL)


def runs_of(events):
    for event in events:
        match = RUN.match(event["name"])
        if match and event.get("cat") == "Node":
            yield match["name"], event["args"]["op_name"], event["args"]["provider"], int(event["args"].get("output_size", 0))


def nodes_that_ran(events):
    table = {}
    for name, operator, provider, _ in runs_of(events):
        table[name, operator, provider] = table.get((name, operator, provider), 0) + 1
    return [key + (table[key],) for key in table]


class Graph:
    def __init__(self, graph, known=None):
        self.copies, self.made_by, self.read_by = known or ([], {}, {})
        for node in graph.node:
            for name in node.output:
                self.made_by[name] = node
            for name in set(node.input):
                self.read_by.setdefault(name, []).append(node)
            if node.op_type.startswith("Memcpy"):
                self.copies.append(node)
            for attribute in node.attribute:
                if attribute.HasField("g"):
                    Graph(attribute.g, (self.copies, self.made_by, self.read_by))
                for graph in attribute.graphs:
                    Graph(graph, (self.copies, self.made_by, self.read_by))


def copies(optimized: onnx.ModelProto, events):
    graph, seen = Graph(optimized.graph), {}
    for name, operator, provider, size in runs_of(events):
        providers, sizes = seen.setdefault((name, operator), (set(), []))
        providers.add(provider)
        sizes.append(size)
    answer = []
    for node in graph.copies:
        down = node.op_type == "MemcpyToHost"
        tensor = node.output[0] if down else node.input[0]
        if down:
            blamed = graph.read_by.get(tensor, [])
        else:
            maker = graph.made_by.get(tensor)
            blamed = graph.read_by.get(tensor, []) if maker is None else [maker]
        here, sizes = seen.get((node.name, node.op_type), (set(), [0]))
        names = set()
        for other in blamed:
            there, _ = seen.get((other.name, other.op_type), (set(), None))
            if here and not other.op_type.startswith("Memcpy") and any(p not in here for p in there):
                names.add(other.name)
        answer.append(dict(node=node.name, direction="to host" if down else "to device", tensor=tensor, bytes=max(sizes), because=sorted(names)))
    return answer


def problems(events, optimized, wanted, allowed=(), copy_bytes=0):
    work = [(name, operator, provider) for name, operator, provider, _ in nodes_that_ran(events) if not operator.startswith("Memcpy")]
    if wanted not in {provider for _, _, provider in work}:
        return ["whole session elsewhere: wanted " + wanted + ", used " + " ".join(sorted({p for _, _, p in work}))]
    told = ["{} of kind {} is on {}".format(*node) for node in work if node[2] != wanted and node[1] not in set(allowed)]
    return told + ["{tensor}: {bytes} bytes {direction}".format(**copy) for copy in copies(optimized, events) if copy["bytes"] > copy_bytes]


def open_checked(model, providers, wanted, allowed=()):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    session = onnxruntime.InferenceSession(model, options, providers=[*providers])
    session.disable_fallback()
    owners = {}
    for part in session.get_provider_graph_assignment_info():
        for node in part.get_nodes():
            owners.setdefault(part.ep_name, []).append((node.name, node.op_type))
    wrong = {p: [n for n in nodes if n[1] not in allowed] for p, nodes in owners.items() if p != wanted}
    complaints = [f"{p} has {nodes}" for p, nodes in wrong.items() if nodes]
    if wanted not in session.get_providers() or complaints or not owners.get(wanted):
        raise RuntimeError(f"wanted {wanted}, which has {owners.get(wanted, [])}; " + "; ".join(complaints))
    return session
