"""temporary until merge"""


def network(net, params):
  return lambda x_t, t, conditions: net.module().apply({"params": params}, x_t, t, conditions)
