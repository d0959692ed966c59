"""What only notebooks and the command line use: studies, plots, the studio, runs, the demo.

Logic that a script of yours would want stands in a room below. It imports every room."""
