"""What a generation keeps in the service manager's fd store, beside its state.

The rule: the store holds what this process uses and nothing older, for the next start takes whatever it finds there.
"""

from oxidize.hostnet.nat import Nat
from oxidize.net.data_path import Tunnel
from oxidize.net.tun import TunDevice
from oxidize.runtime.offer import FdName
from oxidize.service_manager import notify


def store_tunnel(tunnel: Tunnel) -> None:
    """Store a new TUN device instead of the one that is no longer used."""
    notify.forget_fds(FdName.TUN)
    if isinstance(tunnel, TunDevice):
        notify.store_fd(FdName.TUN, tunnel.fileno())


def store_again(tunnel: Tunnel, nat: Nat) -> None:
    """Store what a successor that is dead may have replaced or removed; the store cannot be asked what it holds."""
    store_tunnel(tunnel)
    notify.forget_fds(FdName.NAT)
    if (descriptor := nat.fileno()) is not None:
        notify.store_fd(FdName.NAT, descriptor)


def check_nat(nat: Nat) -> None:
    """Raise ConfigError for what would prevent `apply_nat`; a table that the store may hold does not."""
    nat.check(may_be_freed=notify.is_managed())


def apply_nat(nat: Nat) -> None:
    """Bring the nftables table to what the settings say, and store the socket that owns it; raises OxidizeError."""
    if nat.enabled and nat.is_new:
        # A release in between that does not know the table has left its copy in the store, and so the table exists.
        notify.forget_fds(FdName.NAT)
        if notify.is_managed():
            notify.barrier()
    nat.apply()
    descriptor = nat.fileno()
    if descriptor is None:
        notify.forget_fds(FdName.NAT)
    elif nat.is_new:
        notify.store_fd(FdName.NAT, descriptor)
