"""What many runs found, as a table: means, intervals, differences, costs. See docs/sweeps.md.

`record`: a run as a row; `statistics`: means and intervals; `speed`: runs' steps timed in turns;
`table`: rows → a line for each method; `figures`: the same drawn.
"""
