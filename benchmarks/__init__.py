"""Programs that measure: speed, memory, faults, and every figure of `docs/benchmarks`. They are no tests.

bench.py, against.py                    speed against a baseline, and against another commit
host_cost.py, segmenter_cost.py         the cost of single parts
traced.py                               what a GPU would be asked to do
weights.py                              pretrained weights on the bundled photographs
figures/, photos/                       the tables of docs/benchmarks, and what is fitted to photographs
soak/                                   faults, memory and scale
"""
