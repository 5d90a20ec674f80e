"""Bugs in what is kept of the host: its network, files and ports."""

from tests.mutants.mutant import Mutant

NAT_RULES = "unit/hostnet/test_nat_rules.py::"
HOSTNET = (
    Mutant(
        "port-forward-catches-what-is-only-passed-on",
        "hostnet/nat_rules.py",
        "expr.family_is(target.address.version) + expr.goes_to_this_machine()",
        "expr.family_is(target.address.version)",
        (f"{NAT_RULES}test_a_forward_without_an_address_is_for_what_is_sent_to_this_machine",),
        "with port 443 forwarded, every client's connections to web servers end at one of them",
    ),
    Mutant(
        "nat-translates-what-other-interfaces-bring",
        "hostnet/nat_rules.py",
        'coming = b"" if is_own else expr.interface_is(expr.NFT_META_IIFNAME, interface)',
        'coming = b""',
        (f"{NAT_RULES}test_what_others_than_the_tunnels_networks_send_counts_only_if_the_tunnel_brings_it",),
        "a server whose address is a /32 translates everything that its machine forwards",
    ),
    Mutant(
        "nat-of-a-host-address-translates-the-server-alone",
        "config/nat.py",
        "EVERYTHING[each.version] if each.version in hosts else each",
        "each",
        ("unit/config/test_nat.py::test_a_server_whose_address_is_a_host_translates_all_peers",),
        "no peer of a server with a /32 reaches anything beyond it",
    ),
    Mutant(
        "port-forward-of-the-tunnels-own-port",
        "hostnet/nat.py",
        "        self._check_ports(self._wanted)\n",
        "",
        ("unit/hostnet/test_nat.py::test_the_tunnels_own_port_is_never_forwarded",),
        "the tunnel's datagrams go to a client, and all sessions end",
    ),
    Mutant(
        "interface-bursts-longer-than-a-send",
        "hostnet/interface.py",
        "if link.segments not in {0, segments}:",
        "if 0 < link.segments < segments:",
        ("unit/hostnet/test_interface.py::test_everything_is_set_once_and_then_left_alone",),
        "a burst of TCP leaves and arrives in two parts",
    ),
    Mutant(
        "metrics-address-that-is-taken-ends-a-start",
        "runtime/http_binding.py",
        "        return bind_http(settings)\n    except Exception as error:",
        "        return bind_http(settings)\n    except MemoryError as error:",
        ("unit/runtime/test_http_binding.py::test_an_address_that_is_taken_is_told_and_bound_once_it_is_free",),
        "where another program has TCP 9090 the VPN does not start",
    ),
    Mutant(
        "network-keeper-does-slow-slices-in-a-row",
        "runtime/network_keeper.py",
        "yield max(pause, took) if took > SLOW_SLICE_SECS else pause",
        "yield pause",
        ("unit/runtime/test_network_keeper.py::test_traffic_is_served_for_as_long_as_a_slow_slice_took",),
        "20,000 networks of a peer that go out stop the traffic for more than 50 ms",
    ),
    Mutant(
        "policy-routing-takes-the-rule-of-another-program-for-its-own",
        "hostnet/policy_routing.py",
        "if (rule, ROUTE_PROTOCOL) not in present",
        "if all(rule != each for each, _ in present)",
        ("unit/hostnet/test_policy_routing.py::test_a_rule_of_another_program_does_not_stand_for_a_missing_one",),
        "a rule goes with the program that set it, and packets of a full tunnel leave past it",
    ),
    Mutant(
        "name-servers-are-compared-while-they-are-written",
        "runtime/file_watch.py",
        "            self._due_at = now + QUIET_SECS\n            return\n",
        "            self._due_at = now + QUIET_SECS\n",
        ("unit/runtime/test_file_watch.py::test_a_file_that_is_being_written_is_not_told_before_it_stays_the_same",),
        "half a resolv.conf is taken for a loss, and the client and its writer undo each other's work",
    ),
    Mutant(
        "keeper-pause-grows-without-a-bound",
        "runtime/network_keeper.py",
        "min(doublings, DOUBLINGS)",
        "doublings",
        (
            (
                "unit/runtime/test_network_keeper.py::"
                "test_what_can_never_be_put_back_is_tried_for_as_long_as_the_process_serves"
            ),
        ),
        "a part that cannot be put back for a day ends the server",
    ),
    Mutant(
        "mark-before-the-filter-that-asks-for-it",
        "runtime/node.py",
        "            self.host_setup.protect()\n        self.udp.set_mark(self.settings.fwmark)\n",
        "            self.udp.set_mark(self.settings.fwmark)\n            self.host_setup.protect()\n",
        ("unit/runtime/test_succession.py::test_the_mark_changes_together_with_the_filter_that_asks_for_it",),
        "where the new filter is refused, a kill switch drops the tunnel's own packets",
    ),
    Mutant(
        "kill-switch-removed-where-no-stop-is-known-of",
        "client/unit_hooks.py",
        "spare_kill_switch = gave_up or not systemctl.is_stopped()",
        "spare_kill_switch = gave_up",
        ("unit/client/test_unit_hooks.py::test_a_kill_switch_goes_only_where_a_stop_is_known_of",),
        "packets leave past the tunnel where systemd does not answer",
    ),
)
