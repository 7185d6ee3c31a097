"""C kernels for what a training step does between its matrix products, on a CPU.

    attention.c    attention inside the rows of a pack
    kernels.c      norms, rotary positions, the gate of an MLP, the loss
    decode.c       linear layers with the adapters of each token of a server's step, pages.c attention over pages of keys and
                   values, pool.c the threads of both, decode what calls them
    build          compiled at first use with the system's compiler, cached, and checked against torch before it counts
    functions      torch autograd functions around them
    replace        which modules of a model get them

Without a compiler, on a GPU, or for a shape that they do not know, the same functions are computed by torch.
"""
