"""What both processes use: bpf(2), maps, programs, their configuration, the protocol between the two."""
