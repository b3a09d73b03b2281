"""A trained network as a graph for another runtime: ONNX Runtime, OpenVINO or torch.export."""
