"""The benchmark harness: `python -m bench` measures this machine, `python -m bench.report` writes what came out.

registry     what an op, a case and a provider are
ops/         the ops, each declared once with its shapes, its check and its providers
step/        whole training steps, one process an implementation
whole/       whole training runs: each library's own trainer on a model, one process a run
roofline     the least time an op can take on this machine
measure      clocks: interleaved rounds, on CPU and GPU
memory       what a process holds, and held at most
environment  which machine, and what else it was doing
rows         one result, and the files of them
report       README table, docs/BENCHMARKS.md, plots
"""
