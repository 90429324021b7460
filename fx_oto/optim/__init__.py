"""Group-sparse optimizers: DHSPG and HESSO, and the parts that they share."""
