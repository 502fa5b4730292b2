"""The fused form of the fp16 graph, for ONNX Runtime's CUDA provider."""
