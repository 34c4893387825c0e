# The commands of this project. All of them work from a fresh checkout.

# A Rust that "make deps" installs is found in the same run.
export PATH := $(HOME)/.cargo/bin:$(PATH)

# Stock nginx on both sides of 1.29.2, with newer OpenSSL than Debian 12 has, and what depends on them.
debian_releases := trixie sid
debian_tests := t/resumption.t $(addprefix t/wire/,fleet.t take.t verify.t property.t vhosts.t vhosts-differ.t tickets.t ticket-hello.t ticket-quic.t quic.t reclaim.t reclaim-quic.t stream.t)
# Emulated, each takes several times as long.
arm64_tests := t/resumption.t $(addprefix t/wire/,linked.t fleet.t take.t tickets.t ticket-workers.t stream.t)
test_debian := $(addprefix test-debian-,$(debian_releases))
deb := $(addprefix deb-,$(debian_releases))
test_deb := $(addprefix test-deb-,$(debian_releases))
autopkgtest := $(addprefix autopkgtest-,$(debian_releases))
test_nginx_debian := $(addprefix test-nginx-debian-,$(debian_releases))

.DEFAULT_GOAL := help
.PHONY: help deps deps-demo deps-test build command build-vendored demo test test-patched matrix sanitize $(test_debian) test-debian test-arm64 test-musl nginx-tests test-nginx test-nginx-debian $(test_nginx_debian) release check-release rpm test-rpm test-container deb $(deb) test-deb $(test_deb) autopkgtest $(autopkgtest) test-hup test-leak test-valgrind valgrind-handshakes check audit property fuzz fuzz-merge sanitize-core constant-time clients bench bench-smoke soak clean

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | expand -t 20

deps: ## install what a build needs and is missing (apt, rustup)
	tools/install-deps

deps-demo:
	tools/install-deps demo

deps-test: ## install what the tests and checks need, too
	tools/install-deps test

build: ## the module, for the installed nginx or else the vendored one
	tools/build-module

command: ## nginx-ssl-session, for operators, into target/cli/release
	tools/build-cli

build-vendored: ## the module and nginx 1.28 from crates.io
	tools/build-module vendored

demo: deps-demo build ## two stock nginx servers resume each other's sessions
	tools/demo

ifdef PATCHED
test: test-patched
else
test: deps-test build ## unit tests, then t/ in parallel; PATCHED=1: t/ on a patched nginx
	cargo test --locked -p session-core
	cargo test --release --locked --manifest-path cli/Cargo.toml --target-dir target/cli
	tools/run-tests
endif

# Suspended in OpenSSL's callback, and where nginx is not patched by the filter: both the same tests.
test-patched: deps-test ## t/ on nginx 1.28 with its patch of patches/
	tools/own-nginx 1.28-patched
	TEST_NGINX_PATCHED=1 TEST_NGINX_BINARY="$(CURDIR)/target/own-1.28-patched/nginx" \
	TEST_NGINX_LOAD_MODULES="$(CURDIR)/target/own-1.28-patched/ngx_http_ssl_session_module.so" \
	tools/run-tests plain $(TESTS)

sanitize: deps-test ## t/ with nginx and the module under AddressSanitizer
	tools/sanitize

matrix: deps-test ## tests on the nginx, OpenSSL and servers that people run: which pass
	tools/matrix

test-debian: $(test_debian) ## some of t/ on the stock nginx of newer Debian releases, fetched for it

$(test_debian): test-debian-%: deps-test
	tools/debian-nginx $*
	TEST_NGINX_BINARY="$(CURDIR)/target/debian-$*/nginx" \
	TEST_NGINX_LOAD_MODULES="$(CURDIR)/target/debian-$*/ngx_http_ssl_session_module.so" \
	tools/run-tests plain $(debian_tests)

test-arm64: ## the same for arm64: Debian 13's nginx and the module, cross-built, under qemu; needs root
	tools/install-deps arm64
	tools/debian-nginx trixie-arm64
	TEST_PATIENCE=$${TEST_PATIENCE:-10} TEST_NGINX_BINARY="$(CURDIR)/target/debian-trixie-arm64/nginx" \
	TEST_NGINX_LOAD_MODULES="$(CURDIR)/target/debian-trixie-arm64/ngx_http_ssl_session_module.so" \
	tools/run-tests plain $(arm64_tests)

test-musl: ## the same for musl, Alpine's C library, with an nginx 1.28 that is made for it; needs root
	tools/install-deps musl
	packaging/container/test-musl

deb: ## the Debian packages for this machine's nginx, into target/deb/; for Debian 13: deb-trixie
	tools/install-deps deb
	tools/build-deb

$(deb): deb-%:
	tools/install-deps deb
	tools/debian-nginx $* unpack
	tools/build-deb $*

release: ## the source archive with all crates, its checksums, and what is in the module: target/dist
	tools/release

check-release: ## releases are made the same anywhere, and the module of one as well
	tools/release check

rpm: ## the RPM for this machine's nginx (Fedora, RHEL), into target/rpm/RPMS; nginx.org: packaging/rpm/build
	packaging/rpm/build

test-rpm: ## the RPMs on other machines, built for an nginx like theirs, and used
	tools/install-deps rpm
	packaging/rpm/test

test-container: ## the image of packaging/container, made of Debian's nginx, and what its compose.yaml does
	tools/install-deps container
	packaging/container/test

test-deb: deb ## the packages, installed beside a stock nginx, used, upgraded and removed
	tools/test-deb

$(test_deb): test-deb-%: deb-%
	tools/test-deb $*

autopkgtest: deb ## debian/tests by autopkgtest, in a root of its own; autopkgtest-trixie, autopkgtest-sid
	tools/install-deps autopkgtest
	tools/test-deb autopkgtest

$(autopkgtest): autopkgtest-%: deb-%
	tools/install-deps autopkgtest
	tools/test-deb autopkgtest $*

nginx-tests:
	@tools/test-nginx check

test-nginx: nginx-tests deps-test build ## nginx's own tests, in NGINX_TESTS_DIR, without the module and with it
	tools/install-deps nginx-tests
	tools/test-nginx

test-nginx-debian: $(test_nginx_debian) ## the same on the stock nginx of newer Debian releases

$(test_nginx_debian): test-nginx-debian-%: nginx-tests deps-test
	tools/install-deps nginx-tests
	tools/debian-nginx $*
	TEST_NGINX_BINARY="$(CURDIR)/target/debian-$*/nginx" \
	TEST_NGINX_LOAD_MODULES="$(CURDIR)/target/debian-$*/ngx_http_ssl_session_module.so" \
	tools/test-nginx

test-hup: build ## t/, each configuration reached by a reload
	tools/run-tests hup

test-leak: build ## t/ under load, the memory watched
	tools/run-tests leak

test-valgrind: build ## t/ under valgrind
	tools/run-tests valgrind

valgrind-handshakes: build ## 200 handshakes of each kind under valgrind: errors, and bytes lost
	tools/valgrind-handshakes -n 200

check: ## format, lints, constant time, documentation, licences, advisories if reachable
	tools/check

audit: ## dependencies with the advisory database, which must be reachable
	tools/check audit

property: deps-test build ## configurations and clients, drawn: no session skips what a full handshake has; SECONDS=60
	tools/property

fuzz: ## what core/ reads, fuzzed; FUZZ_SECONDS=60 for each target
	tools/fuzz

fuzz-merge: ## new inputs that "make fuzz" found, into fuzz/corpus
	tools/fuzz merge

sanitize-core: ## core's tests under AddressSanitizer, and valgrind or Miri
	tools/sanitize-core

constant-time: ## comparisons of secrets, under valgrind
	tools/constant-time/run

clients: deps-test build ## which TLS clients resume how, beside plain nginx: the table of docs/clients.md
	tools/clients install
	tools/clients

bench: build ## the figures of docs/, on this machine
	bench/run

soak: deps-test build ## ten minutes of faults in stores of all kinds, under load
	bench/soak

bench-smoke: deps-test build ## the same in small: fails only if something works wrongly
	bench/run smoke

clean: ## forget everything built
	cargo clean
	rm -rf t/servroot*
