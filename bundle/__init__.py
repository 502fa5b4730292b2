"""The contract that all rooms share: what a bundle is, holds and promises."""
