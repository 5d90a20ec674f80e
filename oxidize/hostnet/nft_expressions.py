"""The expressions of nftables rules: what a packet is compared with, and what happens to it.

The rule: a rule is expressions one after the other, of which each that does not match ends it. All pass their values
through the first register, and a translated port through the second. Nothing is sent here (`nftables`).

Sources: linux/netfilter/nf_tables.h; `nft --debug=netlink` shows the expressions of a rule.
"""

import struct

from oxidize.config.values import HostAddress, Network

NLA_F_NESTED = 0x8000  # linux/netlink.h: in the type of an attribute that holds attributes

# --- linux/netfilter.h, linux/netfilter/nf_conntrack_common.h, linux/netfilter/nf_nat.h ---
NFPROTO_IPV4, NFPROTO_IPV6 = 2, 10
NF_DROP, NF_ACCEPT = 0, 1
_IPS_DST_NAT = 1 << 5
_RTN_LOCAL = 2  # linux/rtnetlink.h

# --- linux/netfilter/nf_tables.h ---
NFT_REG_VERDICT, NFT_REG_1, NFT_REG_2 = 0, 1, 2
NFTA_LIST_ELEM = 1
NFTA_EXPR_NAME, NFTA_EXPR_DATA = 1, 2
NFTA_DATA_VALUE, NFTA_DATA_VERDICT = 1, 2
NFTA_VERDICT_CODE = 1
NFTA_IMMEDIATE_DREG, NFTA_IMMEDIATE_DATA = 1, 2
NFTA_CMP_SREG, NFTA_CMP_OP, NFTA_CMP_DATA = 1, 2, 3
NFT_CMP_EQ, NFT_CMP_NEQ, NFT_CMP_LTE, NFT_CMP_GTE = 0, 1, 3, 5
NFTA_META_DREG, NFTA_META_KEY = 1, 2
NFT_META_MARK, NFT_META_IIFNAME, NFT_META_OIFNAME, NFT_META_NFPROTO, NFT_META_L4PROTO = 3, 6, 7, 15, 16
NFTA_PAYLOAD_DREG, NFTA_PAYLOAD_BASE, NFTA_PAYLOAD_OFFSET, NFTA_PAYLOAD_LEN = 1, 2, 3, 4
NFT_PAYLOAD_NETWORK_HEADER, NFT_PAYLOAD_TRANSPORT_HEADER = 1, 2
NFTA_BITWISE_SREG, NFTA_BITWISE_DREG, NFTA_BITWISE_LEN, NFTA_BITWISE_MASK, NFTA_BITWISE_XOR = 1, 2, 3, 4, 5
NFTA_NAT_TYPE, NFTA_NAT_FAMILY, NFTA_NAT_REG_ADDR_MIN, NFTA_NAT_REG_PROTO_MIN = 1, 2, 3, 5
NFT_NAT_SNAT, NFT_NAT_DNAT = 0, 1
NFTA_CT_DREG, NFTA_CT_KEY = 1, 2
NFT_CT_STATUS = 2
NFTA_FIB_DREG, NFTA_FIB_RESULT, NFTA_FIB_FLAGS = 1, 2, 3
NFT_FIB_RESULT_ADDRTYPE, NFTA_FIB_F_DADDR = 3, 2
NFTA_RT_DREG, NFTA_RT_KEY = 1, 2
NFT_RT_TCPMSS = 3
NFTA_BYTEORDER_SREG, NFTA_BYTEORDER_DREG, NFTA_BYTEORDER_OP, NFTA_BYTEORDER_LEN, NFTA_BYTEORDER_SIZE = 1, 2, 3, 4, 5
NFT_BYTEORDER_HTON = 1
NFTA_EXTHDR_TYPE, NFTA_EXTHDR_OFFSET, NFTA_EXTHDR_LEN, NFTA_EXTHDR_OP, NFTA_EXTHDR_SREG = 2, 3, 4, 6, 7
NFT_EXTHDR_OP_TCPOPT = 1
_TCPOPT_MAXSEG = 2  # RFC 9293, section 3.1: the maximum segment size, which stands at 2 of its option

_SOURCE_OFFSET, _DESTINATION_OFFSET = {4: 12, 6: 8}, {4: 16, 6: 24}  # RFC 791, RFC 8200
_DESTINATION_PORT_OFFSET = 2  # RFC 9293, section 3.1; RFC 768
_FAMILY = {4: NFPROTO_IPV4, 6: NFPROTO_IPV6}

_INTERFACE_NAME_SIZE = 16  # IFNAMSIZ: names are compared whole, with the NULs after them


# --- Attributes ---


def attribute(kind: int, value: bytes) -> bytes:
    """Return one attribute of a netlink message, padded."""
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


def nested(kind: int, *attributes: bytes) -> bytes:
    """Return an attribute that holds others."""
    return attribute(kind | NLA_F_NESTED, b"".join(attributes))


def number(kind: int, value: int) -> bytes:
    """Return an attribute with a number of 32 bits."""
    return attribute(kind, struct.pack(">i", value))


def text(kind: int, value: str) -> bytes:
    """Return an attribute with a text."""
    return attribute(kind, value.encode() + b"\0")


# --- Expressions ---


def _expression(name: str, *attributes: bytes) -> bytes:
    return nested(NFTA_LIST_ELEM, text(NFTA_EXPR_NAME, name), nested(NFTA_EXPR_DATA, *attributes))


def _load(register: int, value: bytes) -> bytes:
    data = nested(NFTA_IMMEDIATE_DATA, attribute(NFTA_DATA_VALUE, value))
    return _expression("immediate", number(NFTA_IMMEDIATE_DREG, register), data)


def _compare(operation: int, value: bytes) -> bytes:
    return _expression(
        "cmp",
        number(NFTA_CMP_SREG, NFT_REG_1),
        number(NFTA_CMP_OP, operation),
        nested(NFTA_CMP_DATA, attribute(NFTA_DATA_VALUE, value)),
    )


def _meta(key: int) -> bytes:
    return _expression("meta", number(NFTA_META_DREG, NFT_REG_1), number(NFTA_META_KEY, key))


def interface_is(key: int, name: str, *, negate: bool = False) -> bytes:
    """Match packets by the name of their interface: `key` is NFT_META_IIFNAME or NFT_META_OIFNAME."""
    value = name.encode().ljust(_INTERFACE_NAME_SIZE, b"\0")
    return _meta(key) + _compare(NFT_CMP_NEQ if negate else NFT_CMP_EQ, value)


def meta_is(key: int, value: int) -> bytes:
    """Match packets by NFT_META_NFPROTO or NFT_META_L4PROTO."""
    return _meta(key) + _compare(NFT_CMP_EQ, bytes([value]))


def mark_is(mark: int) -> bytes:
    """Match packets by their mark, as SO_MARK sets it."""
    return _meta(NFT_META_MARK) + _compare(NFT_CMP_EQ, struct.pack("=I", mark))


def family_is(version: int) -> bytes:
    """Match packets of IPv4 or IPv6."""
    return meta_is(NFT_META_NFPROTO, _FAMILY[version])


def comes_from(network: Network) -> bytes:
    """Match packets by the network of their source."""
    return _address_in(_SOURCE_OFFSET, network)


def goes_to(network: Network) -> bytes:
    """Match packets by the network of their destination."""
    return _address_in(_DESTINATION_OFFSET, network)


def goes_to_host(address: HostAddress) -> bytes:
    """Match packets by their destination."""
    every_bit = b"\xff" * len(address.packed)
    return _address_is(_DESTINATION_OFFSET, address.version, address.packed, every_bit)


def _address_in(offsets: dict[int, int], network: Network) -> bytes:
    if network.prefixlen == 0:
        return family_is(network.version)
    return _address_is(offsets, network.version, network.network_address.packed, network.netmask.packed)


def _address_is(offsets: dict[int, int], version: int, address: bytes, mask: bytes) -> bytes:
    return family_is(version) + payload_is(NFT_PAYLOAD_NETWORK_HEADER, offsets[version], address, mask)


def decide(verdict: int) -> bytes:
    """End the way of a packet through a chain: NF_ACCEPT or NF_DROP."""
    code = nested(NFTA_DATA_VERDICT, number(NFTA_VERDICT_CODE, verdict))
    return _expression("immediate", number(NFTA_IMMEDIATE_DREG, NFT_REG_VERDICT), nested(NFTA_IMMEDIATE_DATA, code))


def payload_is(header: int, offset: int, value: bytes, mask: bytes) -> bytes:
    """Match packets whose bytes at `offset` of a header are `value` under `mask`."""
    return _payload(header, offset, len(value)) + _masked(mask) + _compare(NFT_CMP_EQ, value)


def destination_port_in(first: int, last: int) -> bytes:
    """Match packets of TCP or UDP by their destination port, both ends included; the protocol is matched before."""
    load = _payload(NFT_PAYLOAD_TRANSPORT_HEADER, _DESTINATION_PORT_OFFSET, 2)
    if first == last:
        return load + _compare(NFT_CMP_EQ, first.to_bytes(2, "big"))
    return load + _compare(NFT_CMP_GTE, first.to_bytes(2, "big")) + _compare(NFT_CMP_LTE, last.to_bytes(2, "big"))


def goes_to_this_machine() -> bytes:
    """Match packets whose destination is an address of this machine at that time, on whichever interface."""
    load = _expression(
        "fib",
        number(NFTA_FIB_DREG, NFT_REG_1),
        number(NFTA_FIB_RESULT, NFT_FIB_RESULT_ADDRTYPE),
        number(NFTA_FIB_FLAGS, NFTA_FIB_F_DADDR),
    )
    return load + _compare(NFT_CMP_EQ, struct.pack("=I", _RTN_LOCAL))


def was_forwarded() -> bytes:
    """Match packets of a flow whose destination is translated."""
    load = _expression("ct", number(NFTA_CT_DREG, NFT_REG_1), number(NFTA_CT_KEY, NFT_CT_STATUS))
    return load + _masked(struct.pack("=I", _IPS_DST_NAT)) + _compare(NFT_CMP_NEQ, bytes(4))


def _payload(header: int, offset: int, size: int) -> bytes:
    return _expression(
        "payload",
        number(NFTA_PAYLOAD_DREG, NFT_REG_1),
        number(NFTA_PAYLOAD_BASE, header),
        number(NFTA_PAYLOAD_OFFSET, offset),
        number(NFTA_PAYLOAD_LEN, size),
    )


def _masked(mask: bytes) -> bytes:
    return _expression(
        "bitwise",
        number(NFTA_BITWISE_SREG, NFT_REG_1),
        number(NFTA_BITWISE_DREG, NFT_REG_1),
        number(NFTA_BITWISE_LEN, len(mask)),
        nested(NFTA_BITWISE_MASK, attribute(NFTA_DATA_VALUE, mask)),
        nested(NFTA_BITWISE_XOR, attribute(NFTA_DATA_VALUE, bytes(len(mask)))),
    )


def translate_source(address: HostAddress) -> bytes:
    """Give a flow this source address; the packet's family is matched before."""
    return _load(NFT_REG_1, address.packed) + _translation(NFT_NAT_SNAT, address)


def translate_destination(address: HostAddress, port: int | None) -> bytes:
    """Send a flow to this address, and to this port unless it is None; the packet's family is matched before."""
    load = _load(NFT_REG_1, address.packed)
    if port is None:
        return load + _translation(NFT_NAT_DNAT, address)
    load += _load(NFT_REG_2, port.to_bytes(2, "big"))
    return load + _translation(NFT_NAT_DNAT, address, number(NFTA_NAT_REG_PROTO_MIN, NFT_REG_2))


def _translation(kind: int, address: HostAddress, *more: bytes) -> bytes:
    family = number(NFTA_NAT_FAMILY, _FAMILY[address.version])
    return _expression("nat", number(NFTA_NAT_TYPE, kind), family, number(NFTA_NAT_REG_ADDR_MIN, NFT_REG_1), *more)


def masquerade() -> bytes:
    """Give a flow the address of the interface by which it leaves."""
    return _expression("masq")


def clamp_mss() -> bytes:
    """Lower the MSS of a TCP SYN to what its route's MTU lets through, in either direction; never raise it."""
    load = _expression("rt", number(NFTA_RT_DREG, NFT_REG_1), number(NFTA_RT_KEY, NFT_RT_TCPMSS))
    to_network_order = _expression(
        "byteorder",
        number(NFTA_BYTEORDER_SREG, NFT_REG_1),
        number(NFTA_BYTEORDER_DREG, NFT_REG_1),
        number(NFTA_BYTEORDER_OP, NFT_BYTEORDER_HTON),
        number(NFTA_BYTEORDER_LEN, 2),
        number(NFTA_BYTEORDER_SIZE, 2),
    )
    write = _expression(
        "exthdr",
        number(NFTA_EXTHDR_SREG, NFT_REG_1),
        attribute(NFTA_EXTHDR_TYPE, bytes([_TCPOPT_MAXSEG])),
        number(NFTA_EXTHDR_OFFSET, 2),
        number(NFTA_EXTHDR_LEN, 2),
        number(NFTA_EXTHDR_OP, NFT_EXTHDR_OP_TCPOPT),
    )
    return load + to_network_order + write
