"""What the GPU backends share: the encoder made of their pieces, its table, and what is checked before a launch."""
