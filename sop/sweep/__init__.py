"""Many runs by one command: planned, started, gone on with. See docs/sweeps.md.

`grid`: which values; `plan`: which runs that makes; `progress`: how far a run is; `runner`: starts
what is left; `tuning`: takes a value for each method on a validation split.
"""
