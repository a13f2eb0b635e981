"""The ablation study: which module helps, measured over models, seeds and equal time."""
