"""CUDA calls, arrays on the GPU and graph capture: shared by the GPU backends."""
