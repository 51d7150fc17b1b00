"""The questions asked of a model: statistics, reports, figures and the command line."""
