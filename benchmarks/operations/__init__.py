"""The measured ops: inputs, fp64 truth, least work, variants."""
