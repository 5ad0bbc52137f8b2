"""One file for each kind of network device: how one is made, and what the kernel lets it do."""
