"""Open a pretrained checkpoint, whatever it lies in."""
