"""The plain torch twin of every kernel: what it must compute, and what runs where there is no GPU."""
