"""The benchmark harness: `python -m bench` measures this machine, `python -m bench.report` writes what came out.

registry     what an op, a case and a provider are
ops/         the ops, each declared once with its shapes, its check and its providers
step/        whole training steps, one process an implementation
roofline     the least time an op can take on this machine
measure      clocks: interleaved rounds, on CPU and GPU
environment  which machine, and what else it was doing
rows         one result, and the files of them
report       README table, docs/BENCHMARKS.md, plots
"""
