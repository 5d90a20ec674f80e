"""`oxidize peer` and `oxidize import` with a server under systemd: reload by systemctl, files of the service's user."""

from tests.support.traffic.server import b64
from tests.support.traffic.site import Site
from tests.system.service import OXIDIZE, Service

TOML = "/etc/oxidize/server.toml"


def test_a_peer_is_added_and_removed_by_systemctl_reload(service: Service) -> None:
    machine = service.machine
    machine.run("sh", "-c", f"chown root:oxidize {TOML} && chmod 0640 {TOML}")
    service.start()
    handshake = service.handshake()
    before = machine.run("cat", TOML)
    command = (OXIDIZE, "peer", "add", "laptop", "--preshared-key", "--endpoint", "vpn.example.org")
    added = machine.try_run(*command)
    assert added.status == 0, f"{added}\n{machine.journal()}"
    assert "reloaded oxidize-daemon.service\n" in added.errors
    assert "Endpoint = vpn.example.org:51820\n" in added.output
    assert {peer["name"] for peer in service.status()["peers"]} == {"client-1", "laptop"}
    modes = machine.run("stat", "-c", "%a %U %G", TOML, "/etc/oxidize/laptop.psk").splitlines()
    assert modes == ["640 root oxidize", "600 oxidize oxidize"]
    assert machine.run("cat", TOML).startswith(before)

    removed = machine.try_run(OXIDIZE, "peer", "remove", "laptop")
    assert removed.status == 0, removed
    assert machine.run("cat", TOML) == before
    assert machine.try_run("test", "-e", "/etc/oxidize/laptop.psk").status != 0
    assert {peer["name"] for peer in service.status()["peers"]} == {"client-1"}
    assert service.status()["generation"] == 3
    assert service.handshake() == handshake
    service.wait_for_main_process()


def test_a_failed_reload_restores_the_file_and_says_why(service: Service) -> None:
    service.start()
    service.add_release("broken", {"net.event_loop": "got_there()\nraise SystemExit(3)"})
    service.switch_to("broken")
    before = service.machine.run("cat", TOML)
    (current,) = (name for name in service.releases() if name != "broken")
    command = f"/opt/oxidize/releases/{current}/bin/oxidize"
    added = service.machine.try_run(command, "peer", "add", "laptop", "--endpoint", "vpn.example.org")
    assert (added.status, added.output) == (1, ""), added
    assert service.has_got_there()
    assert "oxidize: failed while running systemctl reload: Job for oxidize-daemon.service failed" in added.errors
    assert "still serves" in added.errors
    assert f"{TOML} has been restored" in added.errors
    assert service.machine.run("cat", TOML) == before


def test_an_imported_server_configuration_serves_in_the_unit(service: Service) -> None:
    machine = service.machine
    client = service.client
    lines = ["[Interface]", f"PrivateKey = {b64(service.identity.private)}", "ListenPort = 51820"]
    lines += [f"Address = {Site.SERVER4}/24, {Site.SERVER6}/64", "# laptop", "[Peer]"]
    lines += [f"PublicKey = {b64(client.wireguard.identity.public)}", f"AllowedIPs = {client.inner4}, {client.inner6}"]
    (machine.root / "etc/wg0.conf").write_text("\n".join([*lines, ""]))
    refused = machine.try_run(OXIDIZE, "import", "/etc/wg0.conf")
    assert refused.status == 2
    assert f"{TOML} exists" in refused.errors
    machine.run(OXIDIZE, "import", "/etc/wg0.conf", "--force")
    modes = machine.run("stat", "-c", "%a %U %G", TOML, "/etc/oxidize/server.key").splitlines()
    assert modes == ["640 root oxidize", "600 oxidize oxidize"]
    service.start()
    assert [peer["name"] for peer in service.status()["peers"]] == ["laptop"]


def test_the_printed_commands_configure_the_clients_unit(service: Service) -> None:
    machine = service.machine
    command = ("peer", "add", "laptop", "--preshared-key", "--format", "script", "--endpoint", "vpn.example.org")
    added = machine.try_run(OXIDIZE, *command)
    assert added.status == 0, added
    (machine.root / "etc/laptop.sh").write_text(added.output)
    machine.run("mv", "/etc/oxidize", "/etc/oxidize-of-the-server")  # a client has no such folder yet
    machine.run("sh", "-c", "umask 077 && sh /etc/laptop.sh")
    files = [f"/etc/oxidize{name}" for name in ("", "/client.toml", "/client.key", "/client.psk")]
    assert machine.run("stat", "-c", "%a %U %G", *files).splitlines() == [
        "751 root root",
        "640 root oxidize-client",
        "400 oxidize-client oxidize-client",
        "400 oxidize-client oxidize-client",
    ]
    machine.run("runuser", "-u", "oxidize-client", "--", OXIDIZE, "check", "--client", "-c", files[1])
    again = machine.try_run("sh", "/etc/laptop.sh")
    assert again.status == 1
    assert again.errors.startswith("oxidize: /etc/oxidize/client.key exists, so nothing is written: ")
    assert len(again.errors.splitlines()) == 1
