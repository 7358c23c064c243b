"""Where the blocks of a selection are computed: in this process, or on the nodes of a cluster."""
