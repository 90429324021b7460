"""What removed channels are worth where that is no constant: the compact graph computes it, for norms and means.

Where ``x + table[:n]`` meets a norm, a channel of ``x`` that is gone was worth its column of the table then: another
number at each position. Its part in the norm's sums is known all the same. Whatever else was made of it meanwhile,
element by element, or moved along other dimensions, is made of that column in the compact graph too; and where layers
mix the tokens of each channel, as in MLP-Mixers, what their biases make of one that is worth 0.
"""
