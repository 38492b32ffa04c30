"""Lets a profile pass in which nothing ran.

fails: test_problems_of_nothing
says: Nothing ran on the wanted provider
"""
import collections

import onnx
import onnxruntime as ort

COPIES = {"MemcpyToHost": "to host", "MemcpyFromHost": "to device"}


def nodes_that_ran(events):
    """[(name, operator, provider, runs)] of the nodes that a profile saw running, in the order of their first run."""
    runs = collections.Counter()
    for event in events:
        if event["cat"] == "Node" and event["name"].endswith("_kernel_time"):
            runs[event["name"].removesuffix("_kernel_time"), event["args"]["op_name"], event["args"]["provider"]] += 1
    return [(*node, count) for node, count in runs.items()]


def copies(optimized, events):
    """[{"node", "direction", "tensor", "bytes", "because"}] of every copy node, nested graphs included."""
    def walk(graph):
        for node in graph.node:
            yield node
            for attribute in node.attribute:
                for nested in ([attribute.g] if attribute.type == onnx.AttributeProto.GRAPH else attribute.graphs):
                    yield from walk(nested)

    nodes = list(walk(optimized.graph))
    makers = {output: node for node in nodes for output in node.output}
    readers = collections.defaultdict(list)
    for node in nodes:
        for name in node.input:
            readers[name].append(node)
    providers = collections.defaultdict(set)
    for name, operator, provider, _ in nodes_that_ran(events):
        providers[name, operator].add(provider)
    sizes = collections.defaultdict(list)
    for event in events:
        if event["cat"] == "Node" and event["name"].endswith("_kernel_time"):
            sizes[event["name"].removesuffix("_kernel_time"), event["args"]["op_name"]].append(int(event["args"]["output_size"]))

    found = []
    for copy in nodes:
        if copy.op_type not in COPIES:
            continue
        down, own = copy.op_type == "MemcpyToHost", providers[copy.name, copy.op_type]
        tensor = copy.output[0] if down else copy.input[0]
        if down:
            suspects = readers[tensor]
        elif tensor in makers:
            suspects = [makers[tensor]]
        else:
            suspects = readers[tensor]
        because = {node.name for node in suspects if own and node.op_type not in COPIES and providers[node.name, node.op_type] - own}
        found.append({"node": copy.name, "direction": COPIES[copy.op_type], "tensor": tensor,
                      "bytes": max(sizes[copy.name, copy.op_type], default=0), "because": sorted(because)})
    return found


def problems(events, optimized, wanted, allowed=(), copy_bytes=0):
    """What is not on the wanted provider, and what is copied, one sentence each; [] if all is well."""
    work = [node for node in nodes_that_ran(events) if node[1] not in COPIES]
    if work and not any(provider == wanted for _, _, provider, _ in work):
        return [f"no node ran on {wanted}: the work was done by {', '.join(sorted({node[2] for node in work})) or 'nobody'}"]
    found = [f"{name} ({operator}) ran on {provider}, not on {wanted}" for name, operator, provider, _ in work
             if provider != wanted and operator not in allowed]
    for copy in copies(optimized, events):
        if copy["bytes"] > copy_bytes:
            found.append(f"{copy['tensor']} is copied {copy['direction']}, {copy['bytes']} bytes a run, because of {', '.join(copy['because'])}")
    return found

def open_checked(model, providers, wanted, allowed=()):
    """A session whose nodes are all assigned to the wanted provider, but for allowed operators; RuntimeError if they are not."""
    options = ort.SessionOptions()
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    session = ort.InferenceSession(model, options, providers=list(providers), enable_fallback=0)
    if wanted not in session.get_providers():
        raise RuntimeError(f"{wanted} is not there: the session has {session.get_providers()}")
    assigned = [(part.ep_name, node.name, node.op_type) for part in session.get_provider_graph_assignment_info() for node in part.get_nodes()]
    elsewhere = [f"{name} ({operator}) on {provider}" for provider, name, operator in assigned if provider != wanted and operator not in allowed]
    if elsewhere:
        raise RuntimeError(f"{len(elsewhere)} of {len(assigned)} nodes are not on {wanted}: {', '.join(elsewhere)}")
    if not any(provider == wanted for provider, _, _ in assigned):
        raise RuntimeError(f"{wanted} is registered and runs no node")
    return session
