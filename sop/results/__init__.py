"""What many runs found, as a table: means, intervals, differences, costs. See docs/sweeps.md.

`record`: a run as a row; `robustness`: its calibration, and accuracy on worse images; `statistics`:
means and intervals; `speed`: training steps timed in turns; `table`: rows → a line for each method;
`figures`: the same drawn.
"""
