"""Two kernels that Triton 3.6 and 3.7 compile wrongly for sm_90, as small as they get."""
