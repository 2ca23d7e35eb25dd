"""Which type of index holds the descriptors: designed, chosen by trying, tuned to a recall, sized in advance."""
