class DHSPG: pass
