/*
 * The takeover of a server's sockets and state, for the model checker spin.
 *
 * The rule: what the code does between two instants at which its process may be killed or stopped is one atomic option
 * here, and each option is guarded by what the process can know. States, messages and their names are those of
 * oxidize/takeover/machine.py; tests/unit/takeover/test_model.py compares them.
 *
 * Processes: P serves first; S is its successor; N is what the service manager starts when its main process has ended;
 * R is one more process that an operator starts. C is the coordinator (`oxidize reload`), M the service manager, and
 * Kernel(i) ends, stops and continues process i. README.md beside this file has the abstractions and the scenarios.
 */

#ifndef FAULTS
#define FAULTS 1          /* crashes, stops and failed steps in one run */
#endif
#ifndef FAULTY
#define FAULTY 15         /* which processes they hit: a bit each for P, S, N and R */
#endif
#ifndef SEALS
#define SEALS 0           /* datagrams that are sealed in one run */
#endif
#ifndef GENERATIONS
#define GENERATIONS 2     /* processes with descriptors of the sockets and the state, at most */
#endif
#ifndef STARTS
#define STARTS 0          /* how often the service manager starts a process; 0: there is none */
#endif

#if STARTS || defined(COLD_STARTS)
#define HAS_STORE         /* a service manager keeps the sockets and the state */
#endif

/* --- Processes. A pidfd reports GONE; a process that is ENDING acts no more, and its sockets are closed. --- */
#define P 0
#define S 1
#define N 2
#define R 3
#define PROCESSES 4
#define NONE 7
#define ABSENT_ 0
#define RUNS 1
#define DYING 2
#define GONE_ 3

mtype = { HELLO, OFFER, BUSY, REFUSED, WITHDRAWN, READY, FAILED, COMMIT, TAKEN };

/* --- The states of a process: those of both tables of machine.py, and steps of the host between them --- */
#define IDLE 0
#define CONNECTING 1
#define HELLO_SENT 2
#define S_RESTORING 3
#define PREPARED 4        /* S_RESTORING, restored: waits for the coordinator's GO */
#define INHERITING 5
#define READY_SENT 6
#define LOST 7
#define OWN_SYNC 8        /* OWNING: reads the journal's tail */
#define OWN_LOCK 9
#define OWN_BEGIN 10      /* appends the envelope of its generation */
#define OWN_SERVE 11
#define OWN_BIND 12
#define OWN_TAKE 13
#define TAKEN_SENT 14
#define S_FAILED 15
#define EMPTIED 16        /* of a planted fault alone */
#define COLD_OPEN 20
#define COLD_LOCK 21
#define COLD_READ 22
#define COLD_BEGIN 23
#define COLD_SERVE 24
#define COLD_BIND 25
#define LISTENING 30
#define SEND_OFFER 31
#define RESTORING 32
#define SEND_WITHDRAWN 33
#define FORGET_OFFER 34
#define WITHDRAWING 35
#define FREEZING 36
#define FROZEN 37         /* FREEZING: has stopped reading, its last records are not appended */
#define SEND_COMMIT 38
#define COMMITTED 39
#define ENDING 40
#define SEND_KILL 41
#define KILLING 42
#define THAW_SYNC 43
#define THAW_LOCK 44
#define THAW_SERVE 45
#define THAW_BIND 46
#define RELEASE 47
#define DONE 48           /* of a predecessor: exits */

byte live[PROCESSES];
byte stopped[PROCESSES];  /* 1: until the operator continues or kills it; 2: for ever, unless it is killed */
bit killed[PROCESSES];    /* SIGKILL was sent, and has not ended it yet */
byte state[PROCESSES];
byte partner[PROCESSES];  /* the other side of its takeover */
bit holds[PROCESSES];     /* has the descriptors of the sockets and of the state */
bit serves[PROCESSES];    /* reads the sockets, runs timers */
bit current[PROCESSES];   /* knows each record of the journal */
bit revoked[PROCESSES];      /* the offer that it holds was forgotten by its predecessor */
bit coordinated[PROCESSES];
bit ends[PROCESSES];      /* was told to end, and drains */

/* --- The connection of a client, by the client's number --- */
#define WORDS 3
chan up0 = [WORDS] of { mtype }; chan up1 = [WORDS] of { mtype }; chan up2 = [WORDS] of { mtype };
chan up3 = [WORDS] of { mtype };
chan down0 = [WORDS] of { mtype }; chan down1 = [WORDS] of { mtype }; chan down2 = [WORDS] of { mtype };
chan down3 = [WORDS] of { mtype };
chan up[PROCESSES]; chan down[PROCESSES];
bit connected[PROCESSES]; /* the client has not closed it */
bit hung_up[PROCESSES];   /* the server has */
byte bound = NONE;        /* the process whose socket the path leads to */

/* --- What the kernel keeps for all of them --- */
byte lock = NONE;         /* the process that has the journal's POSIX lock */
bit fenced;               /* a cold start that cannot read the journal keeps its lock, and serves with a new one */
byte faults = FAULTS;
byte at_most;             /* the faults of this run */
bit reaped;               /* the service manager has killed P: its main process had ended */
bit predecessor_fault;    /* a fault has hit P, */
bit heir;                 /* which S must inherit from */
bit orphaned;             /* a fault has hit an owner without a predecessor: only a service manager could start the next process */

/* --- The counter of one key --- */
byte counter = 1;         /* the word in the arena: the next counter that is not used */
byte last_used;
byte loaded[PROCESSES];   /* the value that a process is about to use */
byte seals = SEALS;

/* --- The coordinator and the service manager --- */
byte main_pid = NONE;
bit prepared, go, done_;
byte starts = STARTS;
bit cold;                 /* a process has started from the store */
bit struck;               /* the coordinator has killed S, and a fault had ended P since its look */
bit committed;            /* a process has frozen and said COMMIT */
bit told;                 /* an owner was told to end */

#define can(i)      (live[i] == RUNS && stopped[i] == 0)
#define can_be_hit(i) (live[i] == RUNS && faults && (FAULTY & (1 << i)))
#define sees(i)     (can(i) && !killed[i])   /* a system call's result reaches no process that SIGKILL was sent to */
#define at(i, x)    (state[i] == x)
#define ended(i)    (live[i] != RUNS)
#define lost(j)     (!connected[j] || ended(j))           /* for its server: the connection of client j has ended */
#define hang_up(j)  (hung_up[j] || ended(partner[j]))     /* for client j */

#define alone(i)    ((i == P || !serves[P] || ended(P)) && (i == S || !serves[S] || ended(S)) && \
                     (i == N || !serves[N] || ended(N)) && (i == R || !serves[R] || ended(R)))
#define is_holder(i) (holds[i] && !ended(i))
#define holders     (is_holder(P) + is_holder(S) + is_holder(N) + is_holder(R))
/* A process that has said FAILED never owns, and only its exit is left. */
#define is_generation(i) (is_holder(i) && state[i] != S_FAILED)
#define generations (is_generation(P) + is_generation(S) + is_generation(N) + is_generation(R))

#define is_main_gone (main_pid != NONE && live[main_pid] == GONE_)
#define serving(i)  (serves[i] && can(i))
#define is_served   (serving(P) || serving(S) || serving(N) || serving(R))
#ifdef COLD_STARTS
#define is_excused  (faults < at_most)                      /* a manager would start the next process */
#elif STARTS
#define is_excused  (is_main_gone && !starts)               /* the model's limit of starts, not the manager's */
#else
#ifdef STRICT
#define is_struck   0
#else
#define is_struck   struck                                  /* README.md: a known limit */
#endif
#define is_excused  ((predecessor_fault && !heir) || stopped[P] == 2 || orphaned || told || is_struck)
#endif

/* Scratch of one atomic option, no part of a state */
hidden mtype m;
hidden byte ready, fails, taken, dead;

/* What must hold, by name: an error report begins with it. */
hidden byte one_writer = 1, one_owner = 1, all_restored = 1, not_withdrawn = 1, two_generations = 1, sockets_held = 1;
hidden byte counter_once = 1, served_at_the_end = 1, no_needless_restart = 1, end_of_service_kept = 1;
#define require(name, x) assert(name && (x))

/* Appending to the journal: the writer's right, and all others have something to read. */
inline append(i) {
    require(one_writer, lock == i || fenced);             /* one writer; a fence is the lock of a journal that is out of use */
    current[P] = 0; current[S] = 0; current[N] = 0; current[R] = 0;
    current[i] = 1
}

inline begin_to_serve(i) {
    serves[i] = 1;
    require(one_owner, alone(i));                      /* one owner */
    require(all_restored, current[i])                    /* it has restored all that its predecessors recorded */
}

inline clear(c) {
    do :: nempty(c) -> c ? _ :: empty(c) -> break od
}

inline forget(i) {
    state[i] = IDLE; holds[i] = 0; serves[i] = 0; current[i] = 0; revoked[i] = 0; loaded[i] = 0; ends[i] = 0
    killed[i] = 0; stopped[i] = 0
}

/* The kernel frees the lock of a process that ends while it may have it. */
inline unlock(i) { if :: lock == i -> lock = NONE :: else fi }

inline exit(i) {
    live[i] = DYING;
    forget(i);
    require(sockets_held, STARTS || holders || is_excused)  /* the sockets are held; with a service manager it holds them too */
}

/* A fault hits process i. After that no process can take over from a successor that owns. */
inline hit(i) {
    faults--;
    if
    :: i != P && (ended(P) || state[i] == TAKEN_SENT || state[i] >= LISTENING) ->
        orphaned = 1
    :: else
    fi
}

/* P ends by a fault. A successor that has its offer must inherit. */
inline note_heir(i) {
    if
    :: i == P ->
        predecessor_fault = predecessor_fault || !reaped;
        heir = (holds[S] && !revoked[S] && state[P] != FORGET_OFFER && live[S] == RUNS && !killed[S] && !stopped[S] && state[S] != S_FAILED)
    :: else
    fi
}

/* --- The successor: the states of SUCCESSOR_TABLE --- */

inline give_back(i) {
    if
    :: main_pid == i && partner[i] != NONE && live[partner[i]] == RUNS -> main_pid = partner[i]
    :: else
    fi
}

inline fail(i) {
    if :: !hang_up(i) -> up[i] ! FAILED :: else fi;
    state[i] = S_FAILED
}

inline inherit(i) {
    require(not_withdrawn, !revoked[i]);                        /* what it inherits was not withdrawn */
    state[i] = OWN_SYNC
}

proctype Successor(byte i) {
    do
    :: atomic { sees(i) && at(i, CONNECTING) ->
        if
        :: bound != NONE && live[bound] == RUNS ->
            partner[i] = bound; connected[i] = 1; hung_up[i] = 0;
            clear(up[i]);
            up[i] ! HELLO; state[i] = HELLO_SENT
        :: !(bound != NONE && live[bound] == RUNS) && coordinated[i] -> state[i] = S_FAILED
        :: !(bound != NONE && live[bound] == RUNS) && !coordinated[i] -> state[i] = COLD_OPEN
        fi }
    :: atomic { sees(i) && at(i, HELLO_SENT) && nempty(down[i]) ->
        down[i] ? m;
        if
        :: m == OFFER ->
            holds[i] = 1;
            require(two_generations, generations <= GENERATIONS);  /* at most two generations */
            state[i] = S_RESTORING
        :: else -> state[i] = S_FAILED
        fi }
    :: atomic { sees(i) && at(i, HELLO_SENT) && empty(down[i]) && hang_up(i) -> connected[i] = 0; state[i] = CONNECTING }
    :: atomic { sees(i) && at(i, HELLO_SENT) && empty(down[i]) && !hang_up(i) -> /* DEADLINE */
        fail(i) }
    /* The restore: it reads, and looks at its predecessor once more before READY. */
    :: atomic { sees(i) && at(i, S_RESTORING) ->
        current[i] = 1;
        if :: coordinated[i] -> prepared = 1; state[i] = PREPARED :: else -> state[i] = PREPARED fi }
    :: atomic { sees(i) && at(i, PREPARED) && (!coordinated[i] || go) ->
        dead = (live[partner[i]] == GONE_);
        if
        :: nempty(down[i]) -> state[i] = S_FAILED           /* WITHDRAWN */
        :: empty(down[i]) && dead -> inherit(i)
        :: empty(down[i]) && !dead -> if :: !hang_up(i) -> up[i] ! READY :: else fi; state[i] = READY_SENT
        fi }
    :: atomic { sees(i) && at(i, PREPARED) && coordinated[i] && !go ->
        /* No GO: the coordinator has ended, or takes too long. */
#ifdef PLANT_HEIR_GIVES_UP
        fail(i)
#else
        if
        :: nempty(down[i]) -> state[i] = S_FAILED
        :: empty(down[i]) && live[partner[i]] == GONE_ -> inherit(i)
        :: empty(down[i]) && live[partner[i]] == RUNS -> fail(i)
        fi
#endif
        }
    :: atomic { can(i) && can_be_hit(i) && (at(i, S_RESTORING) || at(i, PREPARED)) ->
        hit(i); fail(i) }                                 /* it cannot restore */
    :: atomic { sees(i) && at(i, READY_SENT) ->
        dead = (live[partner[i]] == GONE_);
        if
        :: nempty(down[i]) ->
            down[i] ? m;
            if
            :: m == COMMIT -> state[i] = OWN_SYNC
            :: else -> state[i] = S_FAILED
            fi; m = 0
        :: empty(down[i]) && dead -> inherit(i)
        :: empty(down[i]) && !dead && hang_up(i) ->
            state[i] = LOST
        :: empty(down[i]) && !dead && !hang_up(i) -> fail(i)      /* DEADLINE */
        fi }
#ifdef PLANT_READ_EARLY
    :: atomic { can(i) && at(i, READY_SENT) && !serves[i] -> begin_to_serve(i) }
#endif
#ifdef PLANT_CHANNEL_BEFORE_DEATH
    :: atomic { sees(i) && at(i, READY_SENT) && empty(down[i]) -> state[i] = EMPTIED }
    :: atomic { sees(i) && at(i, EMPTIED) ->
        if :: live[partner[i]] == GONE_ -> inherit(i) :: else -> state[i] = READY_SENT fi }
#endif
    /* A predecessor that closes the connection without a message, and lives, breaks the protocol: it is not here. */
    :: atomic { sees(i) && at(i, LOST) && live[partner[i]] == GONE_ -> inherit(i) }
    /* Owning */
    :: atomic { can(i) && at(i, OWN_SYNC) -> current[i] = 1; state[i] = OWN_LOCK }
    :: atomic { can(i) && at(i, OWN_LOCK) ->
        if
        :: lock == NONE -> lock = i; state[i] = OWN_BEGIN
        :: else -> state[i] = S_FAILED                      /* a start from the store was faster */
        fi }
    :: atomic { can(i) && at(i, OWN_BEGIN) -> append(i); state[i] = OWN_SERVE }
    :: atomic { can(i) && at(i, OWN_SERVE) -> begin_to_serve(i); state[i] = OWN_BIND }
    :: atomic { can(i) && at(i, OWN_BIND) -> bound = i; state[i] = OWN_TAKE }
    :: atomic { can(i) && can_be_hit(i) && OWN_SYNC <= state[i] && state[i] < OWN_TAKE ->
        hit(i); fail(i) }                                 /* the tail cannot be read, or it cannot listen */
    :: atomic { can(i) && at(i, OWN_TAKE) ->
        if :: !hang_up(i) -> up[i] ! TAKEN :: else fi;
        if :: coordinated[i] -> done_ = 1 :: else fi;
        state[i] = TAKEN_SENT }
    :: atomic { sees(i) && at(i, TAKEN_SENT) && live[partner[i]] == GONE_ ->
        connected[i] = 0; partner[i] = NONE; state[i] = LISTENING }
#ifdef PLANT_NOT_HELD
    :: atomic { sees(i) && at(i, TAKEN_SENT) -> connected[i] = 0; partner[i] = NONE; state[i] = LISTENING }
#endif
    :: atomic { sees(i) && at(i, TAKEN_SENT) && stopped[partner[i]] && !killed[partner[i]] ->    /* DEADLINE */
        killed[partner[i]] = 1 }
    :: atomic { can(i) && at(i, S_FAILED) ->
        give_back(i); connected[i] = 0; unlock(i); exit(i) }
    /* A start without a predecessor */
#ifdef HAS_STORE
    :: atomic { can(i) && at(i, COLD_OPEN) ->
        holds[i] = 1;
        require(two_generations, generations <= GENERATIONS);
#ifdef PLANT_LOCK_AFTER_READING
        current[i] = 1; state[i] = COLD_READ
#else
        state[i] = COLD_LOCK
#endif
        }
    :: atomic { can(i) && at(i, COLD_LOCK) ->
        if
        :: lock == NONE -> lock = i; state[i] = COLD_READ
        :: else -> state[i] = S_FAILED                      /* another process writes: it serves */
        fi }
#ifdef PLANT_LOCK_AFTER_READING
    :: atomic { can(i) && at(i, COLD_READ) ->
        if
        :: !current[i] -> current[i] = 1; serves[i] = 1; state[i] = COLD_SERVE; require(one_owner, alone(i))   /* "not used" */
        :: current[i] && lock == NONE -> lock = i; state[i] = COLD_BEGIN
        :: current[i] && lock != NONE -> state[i] = S_FAILED
        fi }
#else
    :: atomic { can(i) && at(i, COLD_READ) -> current[i] = 1; state[i] = COLD_BEGIN }
#endif
    :: atomic { can(i) && can_be_hit(i) && at(i, COLD_READ) ->
        hit(i);                                             /* unreadable: a new state, and the old lock is kept */
        current[i] = 1; fenced = 1;
#ifdef PLANT_FENCE_OPEN
        lock = NONE;
#endif
        state[i] = COLD_SERVE }
    :: atomic { can(i) && at(i, COLD_BEGIN) -> append(i); state[i] = COLD_SERVE }
    :: atomic { can(i) && at(i, COLD_SERVE) -> begin_to_serve(i); cold = 1; state[i] = COLD_BIND }
    :: atomic { can(i) && at(i, COLD_BIND) -> bound = i; state[i] = LISTENING }
#else
    :: atomic { can(i) && at(i, COLD_OPEN) -> state[i] = S_FAILED }     /* the port is taken, or no process is left */
#endif
    od
}

/* --- The predecessor: the states of PREDECESSOR_TABLE --- */

inline accept(i, j) {
    if
    :: nempty(up[j]) && connected[j] && partner[j] == i && !hung_up[j] && partner[i] != j ->
        up[j] ? m;
        if
        :: at(i, LISTENING) && !ends[i] -> partner[i] = j; state[i] = SEND_OFFER
        :: else -> down[j] ! (ends[i] -> REFUSED : BUSY); hung_up[j] = 1
        fi
    fi
}

#define calls(i, j)  (nempty(up[j]) && connected[j] && partner[j] == i && !hung_up[j] && partner[i] != j && \
                      HELLO_SENT == state[j])

proctype Predecessor(byte i) {
    do
    :: atomic { sees(i) && LISTENING <= state[i] && state[i] < DONE && calls(i, S) -> accept(i, S) }
    :: atomic { sees(i) && LISTENING <= state[i] && state[i] < DONE && calls(i, N) -> accept(i, N) }
    :: atomic { sees(i) && LISTENING <= state[i] && state[i] < DONE && calls(i, R) -> accept(i, R) }
    :: atomic { can(i) && at(i, SEND_OFFER) ->
        if
        :: !lost(partner[i]) -> down[partner[i]] ! OFFER; state[i] = RESTORING
        :: else -> state[i] = RELEASE
        fi }
    /* One look at the successor: is it dead; then its messages; then the end of the connection; then the deadline. */
    :: atomic { sees(i) && (at(i, RESTORING) || at(i, WITHDRAWING) || at(i, COMMITTED) || at(i, ENDING) || at(i, KILLING)) &&
                (nempty(up[partner[i]]) || live[partner[i]] == GONE_ ||
                    (lost(partner[i]) && !at(i, ENDING) && !at(i, KILLING))) ->
        dead = (live[partner[i]] == GONE_); ready = 0; fails = 0; taken = 0;
        do
        :: up[partner[i]] ? [READY] -> up[partner[i]] ? READY; ready = 1
        :: up[partner[i]] ? [FAILED] -> up[partner[i]] ? FAILED; fails = 1
        :: up[partner[i]] ? [TAKEN] -> up[partner[i]] ? TAKEN; taken = 1
        :: empty(up[partner[i]]) -> break
        od;
        if
        :: at(i, RESTORING) && ready && !fails && !dead && !lost(partner[i]) -> state[i] = FREEZING
        :: at(i, RESTORING) && !(ready && !fails && !dead && !lost(partner[i])) && (fails || dead || lost(partner[i])) ->
            revoked[partner[i]] = 1; state[i] = RELEASE
        :: at(i, WITHDRAWING) && (fails || dead || lost(partner[i])) -> state[i] = RELEASE
        :: at(i, WITHDRAWING) && !(fails || dead || lost(partner[i])) -> skip
        :: at(i, COMMITTED) && dead -> state[i] = THAW_SYNC
        :: at(i, COMMITTED) && !dead && taken && !fails -> state[i] = DONE
        :: at(i, COMMITTED) && !dead && !(taken && !fails) ->
#ifdef PLANT_THAW_BY_CLOSE
            state[i] = THAW_SYNC
#else
            state[i] = ENDING
#endif
        :: (at(i, ENDING) || at(i, KILLING)) && dead -> state[i] = THAW_SYNC
#ifdef PLANT_TAKEN_AFTER_KILL
        :: at(i, KILLING) && !dead && taken -> state[i] = DONE
        :: !(at(i, KILLING) && taken) && (at(i, ENDING) || at(i, KILLING)) && !dead -> skip
#else
        :: (at(i, ENDING) || at(i, KILLING)) && !dead -> skip
#endif
        fi }
    /* Deadlines: nothing is to be seen, because the successor is stopped, or because this process was. */
    :: atomic { sees(i) && at(i, RESTORING) && empty(up[partner[i]]) && !lost(partner[i]) ->
#ifdef PLANT_FORGET_FIRST
        revoked[partner[i]] = 1;
#endif
        state[i] = SEND_WITHDRAWN }
    :: atomic { sees(i) && at(i, COMMITTED) && empty(up[partner[i]]) && !lost(partner[i]) -> state[i] = SEND_KILL }
    :: atomic { sees(i) && at(i, ENDING) && live[partner[i]] != GONE_ -> state[i] = SEND_KILL }
    :: atomic { sees(i) && at(i, WITHDRAWING) && empty(up[partner[i]]) && !lost(partner[i]) && !killed[partner[i]] ->
        killed[partner[i]] = 1 }
    /* Withdrawing: WITHDRAWN goes first, for a forgotten offer may change under a successor that trusts it. */
    :: atomic { can(i) && at(i, SEND_WITHDRAWN) ->
        if
        :: !lost(partner[i]) -> down[partner[i]] ! WITHDRAWN
        :: lost(partner[i])
        :: !lost(partner[i]) && can_be_hit(partner[i]) ->   /* its queue is full */
            hit(partner[i]);
#ifndef PLANT_UNTOLD_LIVES
            killed[partner[i]] = 1
#endif
        fi;
        state[i] = FORGET_OFFER }
    :: atomic { can(i) && at(i, FORGET_OFFER) -> revoked[partner[i]] = 1; append(i); state[i] = WITHDRAWING }
    /* Freezing: first it stops reading, then it appends the last of its state and stops being the writer. */
    :: atomic { can(i) && at(i, FREEZING) && !loaded[i] -> serves[i] = 0; state[i] = FROZEN }
    :: atomic { can(i) && at(i, FROZEN) ->
        append(i);
#ifndef PLANT_LOCK_KEPT
        lock = NONE;
#endif
        state[i] = SEND_COMMIT }
    :: atomic { can(i) && can_be_hit(i) && at(i, FREEZING) ->
        hit(i); state[i] = SEND_WITHDRAWN }               /* it failed, before anything was given up */
    :: atomic { can(i) && at(i, SEND_COMMIT) ->
        committed = 1;
        if
        :: !lost(partner[i]) -> down[partner[i]] ! COMMIT; state[i] = COMMITTED
        :: else -> state[i] = ENDING
        fi }
    :: atomic { can(i) && at(i, SEND_KILL) ->
        killed[partner[i]] = (live[partner[i]] == RUNS);
#ifdef PLANT_THAW_BY_KILL
        state[i] = THAW_SYNC
#else
        state[i] = KILLING
#endif
        }
    /* Thawing */
    :: atomic { can(i) && at(i, THAW_SYNC) ->
#ifndef PLANT_THAW_WITHOUT_TAIL
        current[i] = 1;
#endif
        state[i] = THAW_LOCK }
    :: atomic { can(i) && at(i, THAW_LOCK) ->
        if
        :: lock == NONE && current[i] -> lock = i; state[i] = THAW_SERVE
#ifdef PLANT_THAW_WITHOUT_TAIL
        :: lock == NONE && !current[i] -> lock = i; state[i] = THAW_SERVE
#else
        :: lock == NONE && !current[i] -> exit(i)           /* it was not read to its end */
#endif
        :: lock != NONE -> exit(i)                          /* another process writes, and serves */
        fi }
    :: atomic { can(i) && at(i, THAW_SERVE) -> begin_to_serve(i); state[i] = THAW_BIND }
    :: atomic { can(i) && at(i, THAW_BIND) -> bound = i; state[i] = RELEASE }
    :: atomic { can(i) && at(i, RELEASE) -> hung_up[partner[i]] = 1; partner[i] = NONE; state[i] = LISTENING }
    :: atomic { can(i) && at(i, DONE) ->
        exit(i) }
    od
}

/* --- The data path: only the one owner seals, reads and records --- */

proctype DataPath(byte i) {
    do
#ifdef PLANT_TIMERS_RUN
    :: atomic { can(i) && (serves[i] || at(i, COMMITTED)) && seals && !loaded[i] -> seals--; loaded[i] = counter }
#else
    :: atomic { can(i) && serves[i] && seals && !loaded[i] -> seals--; loaded[i] = counter }
#endif
    :: atomic { can(i) && loaded[i] && counter == loaded[i] -> counter = loaded[i] + 1 }
    :: atomic { can(i) && loaded[i] && counter > loaded[i] ->
        require(counter_once, loaded[i] > last_used);                      /* no counter is used twice */
        last_used = loaded[i]; loaded[i] = 0;
        require(one_owner, alone(i) && serves[i]) }
    /* It records what happens to its sessions. */
    :: atomic { can(i) && serves[i] && lock == i &&
                ((current[P] && i != P) || (current[S] && i != S) || (current[N] && i != N) || (current[R] && i != R)) ->
        append(i) }
    od
}

/* --- The end of service: SIGTERM without a successor. The server drains, makes no offer, and then exits. --- */

#ifdef DRAIN
proctype Drain(byte i) {
    do
    :: atomic { sees(i) && !told && (at(i, LISTENING) || at(i, WITHDRAWING)) -> told = 1; ends[i] = 1 }
    :: atomic { sees(i) && !told && at(i, RESTORING) -> told = 1; ends[i] = 1; state[i] = SEND_WITHDRAWN }
    :: atomic { sees(i) && ends[i] && (at(i, LISTENING) || at(i, WITHDRAWING)) -> bound = NONE; unlock(i); exit(i) }
    od
}
#endif

/* --- The coordinator --- */

#define C_WAITS 1
#define C_SETS 2
#define C_GO 3
#define C_UNDO 4
#define C_LOOKS 5
#define C_KILLS 6
#define C_DONE 7          /* GO was sent: S may own at any instant, and is left to P */
#define C_SETTLES 8
#define C_ENDED 9
byte coordinator;
bit abandoned;            /* it was killed, or gave up while S hangs: the main process may be the wrong one */
bit hurried;              /* an interrupt has ended the wait for DONE */

/* S: the predecessor serves, or will. */
#define is_needless (live[P] != GONE_ && (bound != S || ended(S)))

#ifdef PLANT_KILLS_AFTER_GO
#define AFTER_GO C_UNDO
#else
#define AFTER_GO C_SETTLES
#endif

inline set_back(x) {
    if
    :: STARTS && (x) && live[P] == RUNS -> main_pid = P     /* a manager refuses a process that has ended */
    :: else
    fi
}

proctype Coordinator() {
    do
    :: atomic { coordinator == C_WAITS && prepared -> coordinator = C_SETS }
    :: atomic { coordinator == C_WAITS -> coordinator = C_LOOKS }       /* FAILED, the end of S, or a deadline */
    :: atomic { coordinator == C_SETS ->
        if
        :: STARTS && live[S] == RUNS -> main_pid = S; coordinator = C_GO
        :: STARTS && live[S] != RUNS -> coordinator = C_UNDO
        :: STARTS == 0 -> coordinator = C_GO
        fi }
    :: atomic { coordinator == C_GO ->
        if :: !ended(S) -> go = 1 :: else fi;                           /* one that inherited may have said DONE */
        coordinator = C_DONE }
    :: atomic { coordinator == C_UNDO -> set_back(is_needless); coordinator = C_LOOKS }
    :: atomic { coordinator == C_LOOKS -> if :: is_needless -> coordinator = C_KILLS :: else -> coordinator = C_ENDED fi }
    :: atomic { coordinator == C_KILLS ->
        if :: live[S] == RUNS -> killed[S] = 1; struck = predecessor_fault && ended(P) :: else fi;
        coordinator = C_ENDED }
    :: atomic { coordinator == C_DONE && done_ -> coordinator = C_ENDED }
    :: atomic { coordinator == C_DONE && !done_ -> coordinator = AFTER_GO }
    /* S ends, or P kills it, before SETTLE_SECS_MAX has passed: unless P hangs too or has released S, or an interrupt came. */
    :: atomic { coordinator == C_SETTLES && (live[S] == GONE_ || live[P] == GONE_ || done_ || hurried ||
                (stopped[S] && (stopped[P] || partner[P] != S))) ->
        set_back(live[S] == GONE_ && is_needless);
        abandoned = (live[S] != GONE_ && !done_);
        coordinator = C_ENDED }
    :: atomic { coordinator < C_ENDED && faults ->      /* it is killed */
        faults--; abandoned = 1; coordinator = C_ENDED }
    :: atomic { coordinator == C_WAITS && faults -> faults--; coordinator = C_LOOKS }   /* it is interrupted, or an error ends it */
    :: atomic { coordinator == C_DONE && faults -> faults--; hurried = 1; coordinator = AFTER_GO }
    :: atomic { (coordinator == C_SETS || coordinator == C_GO) && faults -> faults--; coordinator = C_UNDO }
    :: atomic { coordinator == C_ENDED -> break }
    od
}

/* --- The service manager: it starts N when its main process has ended --- */

#define is_left(i)   (live[i] == RUNS && !killed[i])

proctype Manager() {
    do
    :: atomic { main_pid != NONE && live[main_pid] == RUNS && stopped[main_pid] == 2 && !killed[main_pid] ->
        killed[main_pid] = 1 }                              /* its watchdog */
#ifdef SYSTEMD
    /* It acts when no control process runs; what the main process leaves behind is killed before the next start. */
    :: atomic { is_main_gone && coordinator == C_ENDED && is_left(P) -> killed[P] = 1; reaped = 1 }
    :: atomic { is_main_gone && coordinator == C_ENDED && is_left(S) -> killed[S] = 1 }
    :: atomic { is_main_gone && starts && coordinator == C_ENDED && live[P] != RUNS && live[P] != DYING &&
                live[S] != RUNS && live[S] != DYING && live[N] != RUNS && live[N] != DYING ->
#else
    :: atomic { is_main_gone && starts ->
#endif
        starts--;
        if
        :: live[N] == ABSENT_ -> main_pid = N
        :: else -> main_pid = R
        fi;
        live[main_pid] = RUNS; state[main_pid] = CONNECTING }
    od
}

/* --- The kernel, the operator, and what can go wrong --- */

proctype Kernel(byte i) {
    do
    :: atomic { live[i] == RUNS && killed[i] -> note_heir(i); unlock(i); exit(i) }
    :: atomic { live[i] == DYING -> live[i] = GONE_; clear(down[i]) }
    :: atomic { live[i] == RUNS && stopped[i] == 1 && !killed[i] -> stopped[i] = 0 }
    :: atomic { live[i] == RUNS && stopped[i] == 1 && !killed[i] -> killed[i] = 1 }
    :: atomic { can_be_hit(i) && !killed[i] -> hit(i); note_heir(i); unlock(i); exit(i) }        /* it crashes */
    :: atomic { can_be_hit(i) && stopped[i] == 0 -> hit(i); stopped[i] = 1 }
    :: atomic { can_be_hit(i) && stopped[i] == 0 -> hit(i); stopped[i] = 2 }
    od
}

/* --- The end of a run: nothing more can happen --- */

#ifdef COLD_STARTS
#define HAS_NO_P 1
#else
#define HAS_NO_P 0
#endif

proctype End() {
    atomic { timeout ->
        require(served_at_the_end, is_served || is_excused);
        require(no_needless_restart, !cold || committed || predecessor_fault || abandoned || HAS_NO_P);   /* before COMMIT a failure costs no restart */
#ifdef DRAIN
        require(end_of_service_kept, !told || !is_served || predecessor_fault)     /* a crash may forget it */
#endif
    }
}

inline start(i) {
#ifdef DRAIN
    run Drain(i);
#endif
    run Successor(i); run Predecessor(i); run DataPath(i); run Kernel(i)
}

init {
    atomic {
        up[P] = up0; up[S] = up1; up[N] = up2; up[R] = up3;
        down[P] = down0; down[S] = down1; down[N] = down2; down[R] = down3;
        partner[P] = NONE; partner[S] = NONE; partner[N] = NONE; partner[R] = NONE;
        /* A run with fewer faults is a run of its own: it ends although more could happen. */
        do :: faults -> faults-- :: break od;
        at_most = faults;
        coordinator = C_ENDED;
#ifdef COLD_STARTS
        /* P has said COMMIT to S, which is dead; two processes start from the store. */
        live[P] = RUNS; holds[P] = 1; state[P] = COMMITTED; partner[P] = S; live[S] = GONE_; connected[S] = 1;
        live[N] = RUNS; state[N] = CONNECTING;
        live[R] = RUNS; state[R] = CONNECTING;
#else
        live[P] = RUNS; holds[P] = 1; serves[P] = 1; current[P] = 1; state[P] = LISTENING; bound = P; lock = P;
        live[S] = RUNS; state[S] = CONNECTING;
#ifdef COORDINATED
        coordinated[S] = 1; coordinator = C_WAITS; run Coordinator();
#endif
#ifdef RIVAL
        live[R] = RUNS; state[R] = CONNECTING;
#endif
#endif
#if STARTS
        main_pid = P; run Manager();
#endif
        start(P); start(S); start(N); start(R);
        run End()
    }
}
