"""DINOv2 features from a bundle, with numpy and one backend; torch is never imported."""
