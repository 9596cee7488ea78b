//! Who holds what: agents, capacity, leases.
