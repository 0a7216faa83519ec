"""Sweeps: many runs from one file, planned, run, continued and reported.

member       a named run; what a sweep file binds
ladder       builders: IsoFLOP profiles, token ladders from one trunk, grids, widths and depths
cost, speed  parameters, tokens, FLOPs; seconds
directory    what is on the disk, and what it says of every member
runner       the processes
table        what a person sees
board        hyper-parameters for TensorBoard
"""
