"""Bugs in the commands, the deployment and what a start tells of its host."""

from tests.mutants.mutant import Mutant

COMMANDS = (
    Mutant(
        "server-out-of-memory-before-its-successor",
        "oom_score.py",
        "            os.environ[BEFORE] = self._before.decode()\n            self._write(HIGHEST)\n",
        "            os.environ[BEFORE] = self._before.decode()\n",
        ("takeover/test_out_of_memory.py::test_a_successor_that_the_oom_killer_ends_takes_no_server_along",),
        "the kernel ends the server where a reload needs more memory than there is",
    ),
    Mutant(
        "rehearsal-before-the-server-out-of-memory",
        "cli/rehearse.py",
        "    with OomScore(), CpuPriority():  # it needs as much memory as the server, and much time\n",
        "    if True:\n",
        ("unit/cli/test_commands.py::test_a_command_with_the_memory_of_a_server_is_what_the_kernel_ends_first",),
        "a rehearsal that needs more memory than there is ends the server",
    ),
    Mutant(
        "low-priority-without-return",
        "cpu_priority.py",
        "            os.setpriority(os.PRIO_PROCESS, own, before)\n",
        "",
        ("unit/test_cpu_priority.py::test_a_process_that_could_not_raise_its_priority_again_keeps_it",),
        "where a process may not raise its priority, each server after a reload gets a tenth of a busy processor",
    ),
    Mutant(
        "successor-serves-at-low-priority",
        "control/reload_channel.py",
        "            self._priority.restore()  # packets wait for what follows\n",
        "            pass\n",
        ("unit/control/test_reload_channel.py::test_a_successor_is_at_full_priority_when_it_says_that_it_is_prepared",),
        "packets of a hand-off wait for a successor that other processes keep from running",
    ),
    Mutant(
        "unreached-server-taken-for-none",
        "deploy/deployment.py",
        "            if unreached := self.server.unreached():\n",
        '            if unreached := "":\n',
        ("unit/deploy/test_deployment.py::test_a_server_that_cannot_be_reached_is_named_and_nothing_is_switched",),
        "a deployment beside a server whose path vanished changes only the next start, and says that none runs",
    ),
    Mutant(
        "ipv6-off-where-one-switch-says-so",
        "net/ipv6.py",
        '        if switches and all(switch.read_text().strip() == "1" for switch in switches):\n',
        '        if switches and any(switch.read_text().strip() == "1" for switch in switches):\n',
        ("unit/net/test_ipv6.py::test_ipv6_is_missing_where_it_is_switched_off_on_every_interface_and_the_next",),
        "a host with IPv6 on one interface is told that it has none",
    ),
    Mutant(
        "journal-stream-stays-ended",
        "log_output.py",
        "            self._open_stream_again()\n",
        "            raise\n",
        ("unit/test_log_output.py::test_a_stream_that_ended_with_the_journal_is_opened_again",),
        "a process that outlives a stop of the journal ends without its reason",
    ),
    Mutant(
        "end-after-a-drain-without-a-word",
        "runtime/node.py",
        '        log.info("ends", signal=asked, generation=self.generation, sessions=sessions)\n',
        "",
        ("unit/runtime/test_node.py::test_an_end_names_its_signal_also_where_a_drain_was_over",),
        "the log does not say that the process has ended",
    ),
    Mutant(
        "remedy-that-does-not-fit-a-full-disk",
        "provision/config_file.py",
        "remedy_for(error, _REMEDIES.get(error.errno or 0, remedy))",
        "remedy_for(error, remedy)",
        ("unit/provision/test_config_file.py::test_a_file_that_cannot_be_replaced_stays_and_the_remedy_fits",),
        "where the disk is full, peer add asks for another user",
    ),
)
