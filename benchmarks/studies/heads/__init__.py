"""What heads cost."""
