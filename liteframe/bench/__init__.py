"""Speed: kernels, encoders and whole Video LLMs, right before timed, side by side."""
