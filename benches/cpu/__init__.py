"""make bench: the operators on the processor. benches/bench_<op>.py hold the rows; what measures them stands here.

    python -m pytest benches/bench_*.py [--only WORDS] [--quick] [--update]

`rows` a row and where to find all; `gemm` the matrix products they are held against; `contestant` something to time;
`race` times ours and the peers in turn; `alone` runs one of them in a process of its own, for its memory; `machine`
what the machine is and can do; `score` what a lower precision does to mAP; `committed` compares with the figures in
results/; `session` a whole run; `report` its tables; `growth` the curves.
"""
