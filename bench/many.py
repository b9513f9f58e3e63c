"""`python -m bench.many`: graphs of 1,000 prompts of 16 tokens on tiny-mix, by `attribute_many` and as circuit-tracer
builds them, in one process with one thread; CPU seconds a prompt. With `--workers N` as many processes of one thread
against one process of N threads, and seconds of the clock on the wall.

The other way is written after circuit-tracer's description of its own: for each prompt a forward pass with gradients
over B copies of it, in which attention patterns and norm scales are detached; then a backward pass for every B targets,
each injected into the gradient of its copy, whose gradients are gathered at every active feature and contracted with
its decoder row; a dense matrix of edges. Every node gets a row, so nothing is ranked. It is timed on some prompts,
and its edges are compared with ours. circuit-tracer itself is timed on as many, where it is installed.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor

import pullback as pb
from bench.interop.__main__ import TRACER, offline
from pullback.attribution import Graph
from pullback.attribution import nodes as k
from pullback.lens import Lens, as_lens
from pullback.lens import record as rec
from pullback.zoo.tinymix import tasks

LENGTH = 16
TOLERANCE = 1e-5
CONFIG = (
    *("n_layers", "d_model", "n_ctx", "n_heads", "d_head", "d_mlp", "d_vocab", "act_fn", "normalization_type"),
    *("positional_embedding_type", "rotary_dim", "rotary_base", "rotary_adjacent_pairs"),
)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.many", description=(__doc__ or "").split(";")[0])
    parser.add_argument("--prompts", type=int, default=1000, help="prompts that attribute_many explains")
    parser.add_argument("--compared", type=int, default=40, help="prompts that the other way explains")
    parser.add_argument("--workers", type=int, default=1, help="processes here, threads there")
    parser.add_argument("--batch-size", type=int, default=64, help="copies of the prompt of the other way")
    parser.add_argument("--python", type=Path, default=TRACER, help="interpreter that has circuit-tracer")
    parser.add_argument("--json", type=Path, default=None, help="write the figures here as well")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.workers)
    figures = measure(options.prompts, options.compared, options.batch_size, options.workers)
    if options.python.exists():
        itself = by_circuit_tracer(options.python, options.compared, options.batch_size, options.workers)
        figures |= {"circuit_tracer_ms": itself, "times_faster_than_itself": itself / figures["attribute_many_ms"]}
    print(json.dumps(figures, indent=1))
    if options.json is not None:
        options.json.write_text(json.dumps(figures, indent=1) + "\n")
    return 0


def measure(n_prompts: int, n_compared: int, batch_size: int, threads: int = 1) -> dict[str, float]:
    """Seconds a prompt of both, graphs on disk in the end. The other way takes its turns among the first and the last
    of ours, so that what else the machine does slows both."""
    clock = time.process_time if threads == 1 else time.perf_counter
    model, sets = pb.zoo.load("tiny-mix"), pb.zoo.transcoders("tiny-mix")
    lens = as_lens(model)
    prompts = list(prompts_of(n_prompts))
    other = Copies(lens, sets, batch_size)
    compared = prompts[:: max(1, n_prompts // max(1, n_compared))][:n_compared]
    with tempfile.TemporaryDirectory() as folder:
        pb.attribute_many(model, sets, prompts[:4], Path(folder) / "warm", verbose=False)
        other.graph(prompts[0])
        half = len(compared) // 2
        theirs, first = seconds(clock, lambda: [_saved(other.graph(p), Path(folder)) for p in compared[:half]])
        out, settings = Path(folder) / "ours", {"workers": threads, "verbose": False}
        ours, _ = seconds(clock, lambda: pb.attribute_many(model, sets, prompts, out, **settings))
        more, last = seconds(clock, lambda: [_saved(other.graph(p), Path(folder)) for p in compared[half:]])
        table = pb.read_index(out)
        files = {tuple(row.tokens): row.file for row in table.itertuples()}
        error = max(
            difference(Graph.load(out / files[tuple(prompt.tolist())]), edges)
            for prompt, edges in zip(compared, [*first, *last], strict=True)
        )
    if not error <= TOLERANCE:
        raise ValueError(f"the two ways disagree by {error:.1e} of the largest edge: no speed is worth comparing")
    a_prompt, theirs_a_prompt = ours / n_prompts, (theirs + more) / len(compared)
    return {
        "prompts": n_prompts,
        "tokens": LENGTH,
        "threads": threads,
        "features_a_graph": float(table["n_nodes"].mean()),
        "edges_a_graph": float(table["n_edges"].mean()),
        "attribute_many_ms": 1e3 * a_prompt,
        "copies_ms": 1e3 * theirs_a_prompt,
        "copies": batch_size,
        "times_faster": theirs_a_prompt / a_prompt,
        "largest_difference": error,
    }


def by_circuit_tracer(python: Path, n_prompts: int, batch_size: int, threads: int) -> float:
    """Milliseconds that it takes a prompt itself, with the file it writes, by the clock of `measure`."""
    model, sets = pb.zoo.load("tiny-mix"), pb.zoo.transcoders("tiny-mix")
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        (folder / "model").mkdir()
        weights = {name: weight.detach().contiguous() for name, weight in model.tl_named_parameters()}
        save_file(weights, folder / "model/weights.safetensors")
        sets.save(folder / "transcoders", "pullback")
        prompts = [prompt.tolist() for prompt in prompts_of(n_prompts)]
        config = {name: getattr(model.cfg, name) for name in CONFIG}
        about = {"config": config, "prompts": prompts, "settings": {"batch_size": batch_size}, "threads": threads}
        (folder / "case.json").write_text(json.dumps(about))
        command = [str(python), str(Path(__file__).parent / "graphs/tracer_many.py"), made]
        environment = offline(folder) | {"OMP_NUM_THREADS": str(threads)}
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment)
    return 1e3 * json.loads(done.stdout.splitlines()[-1])["seconds"]


def prompts_of(n: int) -> Sequence[Tensor]:
    """Repeated lists of words, as the model was trained on, of 16 tokens with <bos>."""
    generator = torch.Generator().manual_seed(0)
    chosen = torch.stack([torch.randperm(len(tasks.LIST_IDS), generator=generator)[:10] for _ in range(n)])
    words = tasks.LIST_IDS[chosen]
    bos = torch.full((n, 1), tasks.BOS_ID)
    return list(torch.cat([bos, words, words[:, : LENGTH - 11]], 1))


def seconds(clock: Callable[[], float], do: Callable[[], Any]) -> tuple[float, Any]:
    start = clock()
    result = do()
    return clock() - start, result


def _saved(edges: Tensor, folder: Path) -> Tensor:
    torch.save(edges, folder / "dense.pt")
    return edges


def difference(graph: Graph, edges: Tensor) -> float:
    """Between a graph and a dense matrix [features, logits] x [features, errors, embeddings], by its largest edge."""
    dense = torch.zeros(graph.n_nodes, graph.n_nodes)
    dense[graph.rows(), graph.sources.long()] = graph.weights
    feature, logit = graph.of_kind(k.FEATURE), graph.of_kind(k.LOGIT)
    kinds = (feature, graph.of_kind(k.ERROR), graph.of_kind(k.EMBEDDING))
    columns = torch.cat([kind.nonzero()[:, 0] for kind in kinds])
    rows = torch.cat([kind.nonzero()[:, 0] for kind in (feature, logit)])
    return float((dense[rows][:, columns] - edges).abs().max() / edges.abs().max())


class Sources(NamedTuple):
    """What one prompt's edges come from, layer by layer."""

    positions: list[Tensor]  # of active features
    encoders: list[Tensor]  # (n, d), their rows
    decoders: list[Tensor]  # (n, d), times their activations
    errors: list[Tensor]  # (T, d)
    embedding: Tensor  # (T, d)
    logits: Tensor  # (n_logits, d), demeaned columns


class Copies:
    """Graphs by backward passes over copies of the prompt."""

    def __init__(self, lens: Lens, sets: Any, batch_size: int, max_n_logits: int = 10, prob: float = 0.95) -> None:
        self.lens, self.sets, self.batch_size = lens, sets, batch_size
        self.max_n_logits, self.prob = max_n_logits, prob
        self.L = lens.n_layers
        self.inputs = [lens.input_site(i, sets.hook_in(i)) for i in range(self.L)]
        self.outputs = [f"blocks.{i}.hook_mlp_out" for i in range(self.L)]

    def graph(self, tokens: Tensor) -> Tensor:
        """Dense edges [features, logits] x [features, errors, embeddings]."""
        found = self._sources(tokens)
        self._forward(tokens)
        layer = torch.cat([torch.full((len(p),), i) for i, p in enumerate(found.positions)])
        position, encoder = torch.cat(found.positions), torch.cat(found.encoders)
        n_features, T = len(layer), len(tokens)
        edges = torch.zeros(n_features + len(found.logits), n_features + self.L * T + T)
        last = torch.full((len(found.logits),), T - 1)
        edges[n_features:] = self._backward(found, torch.full_like(last, self.L), last, found.logits)
        for start in range(0, n_features, self.batch_size):
            rows = slice(start, start + self.batch_size)
            edges[:n_features][rows] = self._backward(found, layer[rows], position[rows], encoder[rows])
        return edges

    @torch.no_grad()
    def _sources(self, tokens: Tensor) -> Sources:
        logits, seen = rec.record(self.lens.model, tokens[None], [*self.inputs, *self.outputs, "hook_embed"])
        columns: list[list[Tensor]] = [[], [], [], []]
        for i, (hook_in, hook_out) in enumerate(zip(self.inputs, self.outputs, strict=True)):
            tc, y = self.sets[i], seen[hook_out][0]
            h = seen[hook_in][0] @ tc.W_enc.T + tc.b_enc
            top = h.topk(tc.activation.k, dim=-1)
            dense = torch.zeros_like(h).scatter_(1, top.indices, top.values.relu())
            active = dense.to_sparse()
            position, ids = active.indices()
            decoders = tc.W_dec[ids] * active.values()[:, None]
            rebuilt = tc.b_dec + torch.zeros_like(y).index_add_(0, position, decoders)
            for column, value in zip(columns, (position, tc.W_enc[ids], decoders, y - rebuilt), strict=True):
                column.append(value)
        likely = torch.softmax(logits[0, -1], -1).topk(self.max_n_logits)
        wanted = likely.indices[: int((likely.values.cumsum(0) < self.prob).sum()) + 1]
        W_U = self.lens.W_U
        return Sources(*columns, seen["hook_embed"][0], (W_U[:, wanted] - W_U.mean(1, keepdim=True)).T)

    def _forward(self, tokens: Tensor) -> None:
        """Copies of the prompt, with gradients that stop at patterns, norm scales and inside MLPs."""
        self.at_input: list[Tensor] = []
        self.at_output: list[Tensor] = []

        def embed(x: Tensor) -> Tensor:
            self.embedded = x.detach().requires_grad_()
            return self.embedded

        def last(x: Tensor) -> None:
            self.final = x

        def write(y: Tensor) -> Tensor:
            skip = self.at_input[-1] * 0
            self.at_output.append(skip + (y - skip).detach())
            return self.at_output[-1]

        edits: list[tuple[str, rec.Edit]] = [("hook_embed", embed), ("ln_final.hook_normalized", last)]
        for i in range(self.L):
            edits.append((f"blocks.{i}.attn.hook_pattern", torch.Tensor.detach))
            edits += [(self.inputs[i], self.at_input.append), (self.outputs[i], write)]
        edits += [(name, lambda s: s.detach().clone()) for name, _ in rec.exact_norms(self.lens.model)]
        with torch.enable_grad(), rec.hooked(self.lens.model, edits):
            self.lens.model(tokens.expand(self.batch_size, -1))

    def _backward(self, found: Sources, layer: Tensor, position: Tensor, vectors: Tensor) -> Tensor:
        """Rows of edges (n, n_sources) of at most as many targets as there are copies."""
        T = len(found.embedding)
        starts = torch.tensor([0, *(len(p) for p in found.positions)]).cumsum(0).tolist()
        rows = torch.zeros(starts[-1] + self.L * T + T, self.batch_size)

        def score(i: int) -> Callable[[Tensor], None]:
            def hook(g: Tensor) -> None:
                gathered = g[:, found.positions[i]]
                rows[starts[i] : starts[i + 1]] += torch.einsum("bnd,nd->nb", gathered, found.decoders[i])
                errors = starts[-1] + i * T
                rows[errors : errors + T] += torch.einsum("btd,td->tb", g, found.errors[i])

            return hook

        def score_embedding(g: Tensor) -> None:
            rows[-T:] += torch.einsum("btd,td->tb", g, found.embedding)

        def inject(copies: Tensor) -> Callable[[Tensor], Tensor]:
            def hook(g: Tensor) -> Tensor:
                g = g.clone()
                g[copies, position[copies]] = vectors[copies]
                return g

            return hook

        hooks = [self.at_output[i].register_hook(score(i)) for i in range(self.L)]
        hooks.append(self.embedded.register_hook(score_embedding))
        sites = {i: self.final if i == self.L else self.at_input[i] for i in layer.unique().tolist()}
        hooks += [site.register_hook(inject((layer == i).nonzero()[:, 0])) for i, site in sites.items()]
        top = sites[max(sites)]
        top.backward(torch.zeros_like(top), retain_graph=True)
        self.embedded.grad = None
        for hook in hooks:
            hook.remove()
        return rows[:, : len(layer)].T


if __name__ == "__main__":
    raise SystemExit(main())
