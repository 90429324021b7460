"""Every picture: plain data in, a ``Picture`` out; only ``drawings`` and ``widths`` read GraphModules.

``wired_rows`` draws rows of text beside lanes of coloured wires, as which graphs and partitions are shown: whatever the
network, no text can lie on another. ``layout`` says which wire runs where, ``folding`` what shares a row.
"""
