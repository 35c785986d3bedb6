"""How a process runs: its options, its device, its files, the processes beside it."""
