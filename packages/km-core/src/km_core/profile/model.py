"""
SandboxProfile v1alpha1 as attrs classes (spec/profile.md section 4).

Each field's type, range, pattern, default and description stand here once; validation, the JSON Schema
and ``docs/reference/profile.md`` are read from these declarations.  Instances are made by
`km_core.compile.load_profile` from a merged document with its defaults filled in; they are plain data.
"""

# ruff: noqa: RUF009 - required() and optional() return attrs field specifiers, not values

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from attrs import field, frozen

from km_core.profile import grammar
from km_core.profile.duration import DURATION_PATTERN, SHORT_DURATION_PATTERN, TTL_PATTERN
from km_core.profile.kinds import (
    BySubstrate,
    Choice,
    Flag,
    Listing,
    Number,
    Section,
    Table,
    Text,
    optional,
    required,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

SUBSTRATES = ("ec2", "ecs", "docker", "local")
SIDECAR_IMAGES = {
    "dnsProxy": "km-dns-proxy:latest",
    "httpProxy": "km-http-proxy:latest",
    "auditLog": "km-audit-log:latest",
    "tracing": "km-tracing:latest",
}
_GIB = 16384
_FLAG = Flag()
_TEXT = Text()
_REGION = Text(grammar.REGION_PATTERN, "is no region name", "us-east-1", min_length=1)
_SECRET = Text(grammar.SECRET_PATH_PATTERN, rule=grammar.secret_path, example="/team/api-key")
_DURATION = Text(DURATION_PATTERN, rule=grammar.duration, example="4h")
_LOG_SINK = Choice(("cloudwatch", "s3", "stdout"))
_MAIL = Choice(("required", "optional", "off"))
_DOLLARS = Number(0, 1_000_000)


def _log(group: str) -> BySubstrate:
    here = {"destination": "stdout"}
    return BySubstrate({"docker": here, "local": here}, {"destination": "cloudwatch", "logGroup": group})


def _sidecar(key: str, doc: str) -> Any:
    return optional(key, Section(Sidecar), doc, default={"enabled": True, "image": SIDECAR_IMAGES[key]})


@frozen(kw_only=True)
class Metadata:
    """Who the profile is."""

    name: str = required(
        "name",
        Text(
            grammar.NAME_PATTERN, "is no name: letters, digits and . _ -, at most 63", "goose", min_length=1
        ),
        "Display name; a profile is extended by its file name.",
    )
    labels: Mapping[str, str] = optional(
        "labels",
        Table(
            Text(grammar.LABEL_KEY_PATTERN, "is no label name: letters, digits and . _ / -, at most 63"),
            Text(max_length=256),
        ),
        "Labels for filtering; the only field that `extends` merges key by key.",
        default={},
    )
    prefix: str = optional(
        "prefix",
        Text(r"[a-z][a-z0-9]{0,11}", "must be 1 to 12 lower-case letters and digits", "sb"),
        "First part of the sandbox id.",
        default="sb",
    )


@frozen(kw_only=True)
class Lifecycle:
    """How long a sandbox lives and how it ends."""

    ttl: str = required(
        "ttl", Text(TTL_PATTERN, rule=grammar.ttl, example="4h"), 'Time to live; `"0"` never expires.'
    )
    idle_timeout: str = required(
        "idleTimeout",
        _DURATION,
        'Idle time after which the teardown policy acts; with ttl `"0"` it stops instead of destroying.',
    )
    teardown_policy: str = required(
        "teardownPolicy",
        Choice(("destroy", "stop", "retain")),
        "What happens at the end of the time to live.",
    )
    max_lifetime: str | None = optional("maxLifetime", _DURATION, "Longest life that `km extend` may reach.")


@frozen(kw_only=True)
class AdditionalVolume:
    """A further data volume."""

    size: int = required("size", Number(1, _GIB, whole=True), "Size in GiB.")
    mount_point: str = required(
        "mountPoint",
        Text(rule=grammar.mount_point, min_length=1, example="/data"),
        "Directory the volume is mounted at.",
    )
    encrypted: bool = optional("encrypted", _FLAG, "Encrypt the volume.", default=False)


@frozen(kw_only=True)
class Runtime:
    """Where a sandbox runs, and on what."""

    substrate: str = required(
        "substrate", Choice(SUBSTRATES, extensible=True), "Substrate; plugins may bring further names."
    )
    spot: bool = optional("spot", _FLAG, "Spot capacity.", default=False)
    instance_type: str = required("instanceType", Text(min_length=1, example="t3.medium"), "Instance type.")
    region: str = required("region", _REGION, "Region.")
    root_volume_size: int = optional(
        "rootVolumeSize",
        Number(0, _GIB, whole=True),
        "Root volume in GiB; 0 is the image's own size.",
        default=0,
    )
    additional_volume: AdditionalVolume | None = optional(
        "additionalVolume", Section(AdditionalVolume), "A further data volume."
    )
    hibernation: bool = optional("hibernation", _FLAG, "Keep memory on disk while paused.", default=False)
    ami: str = optional(
        "ami",
        Choice(("", "amazon-linux-2023", "ubuntu-24.04", "ubuntu-22.04"), also=grammar.AMI_PATTERN),
        "Machine image: a name or a raw id.",
        default="",
    )
    mount_efs: bool = optional("mountEFS", _FLAG, "Mount the region's shared file system.", default=False)
    efs_mount_point: str = optional(
        "efsMountPoint",
        Text(rule=grammar.efs_mount_point, min_length=1, example="/shared"),
        "Directory of the shared file system.",
        default="/shared",
    )


@frozen(kw_only=True)
class Execution:
    """What runs inside."""

    shell: str = required(
        "shell", Text(rule=grammar.shell, min_length=1, example="/bin/bash"), "Login shell."
    )
    working_dir: str = required(
        "workingDir",
        Text(rule=grammar.absolute_path, min_length=1, example="/workspace"),
        "Directory that sessions start in.",
    )
    use_bedrock: bool = optional("useBedrock", _FLAG, "Use the cloud's model service.", default=False)
    env: Mapping[str, str] = optional(
        "env",
        Table(Text(grammar.ENV_NAME_PATTERN, rule=grammar.env_name), Text(multiline=True)),
        "Environment variables.",
        default={},
    )
    init_commands: tuple[str, ...] = optional(
        "initCommands",
        Listing(Text(min_length=1, multiline=True)),
        "Commands run once before the first session.",
        default=[],
    )
    init_scripts: tuple[str, ...] = optional(
        "initScripts",
        Listing(Text(rule=grammar.relative_path)),
        "Scripts run after the commands.",
        default=[],
    )
    rsync: str | None = optional(
        "rsync",
        Text(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", "is no snapshot name: letters, digits and . _ -"),
        "Home snapshot restored before the commands.",
    )
    rsync_paths: tuple[str, ...] = optional(
        "rsyncPaths",
        Listing(Text(rule=grammar.relative_path)),
        "What `km rsync save` keeps; empty is the whole home.",
        default=[],
    )
    rsync_file_list: str | None = optional(
        "rsyncFileList", Text(min_length=1), "YAML file with further paths, read at save time."
    )
    privileged: bool = optional("privileged", _FLAG, "Passwordless sudo for the sandbox user.", default=False)
    config_files: Mapping[str, str] = optional(
        "configFiles",
        Table(Text("/.*", rule=grammar.config_file), Text(multiline=True)),
        "Files written after the commands, by absolute path.",
        default={},
    )


@frozen(kw_only=True)
class Github:
    """Repositories and refs."""

    allowed_repos: tuple[str, ...] = required(
        "allowedRepos",
        Listing(Text(grammar.REPO_PATTERN, rule=grammar.repo)),
        "Repositories: `owner/name`, `owner/*`, `*`; empty allows none.",
    )
    allowed_refs: tuple[str, ...] | None = optional(
        "allowedRefs",
        Listing(Text(grammar.REF_PATTERN, rule=grammar.ref)),
        "Refs that may be pushed; absent allows every ref, empty none.",
    )


@frozen(kw_only=True)
class SourceAccess:
    """Access to source repositories."""

    mode: str = required("mode", Choice(("allowlist", "none")), "`none` allows no repository at all.")
    github: Github | None = optional("github", Section(Github), "GitHub repositories; absent allows none.")


@frozen(kw_only=True)
class Egress:
    """What may be reached."""

    allowed_dns_suffixes: tuple[str, ...] = required(
        "allowedDNSSuffixes",
        Listing(Text(grammar.DNS_SUFFIX_PATTERN, rule=grammar.dns_suffix)),
        "Names that resolve, with everything below them, or `@group`; empty resolves nothing.",
    )
    allowed_hosts: tuple[str, ...] = optional(
        "allowedHosts",
        Listing(Text(grammar.HOST_PATTERN, rule=grammar.host)),
        "Hosts: `name` (exactly), `.name`, `*.name`, an IPv4 address, each also with `:PORT`; a CIDR, `@group`.",
        default=[],
    )


@frozen(kw_only=True)
class Network:
    """The network policy and how it is enforced."""

    egress: Egress = required("egress", Section(Egress), "What may be reached; nothing else is.")
    https_only: bool = optional("httpsOnly", _FLAG, "Refuse plain HTTP.", default=False)
    enforcement: str = optional(
        "enforcement", Choice(("proxy", "ebpf", "both")), "Who enforces the policy.", default="proxy"
    )


@frozen(kw_only=True)
class Identity:
    """The cloud identity of a sandbox."""

    role_session_duration: str = required(
        "roleSessionDuration",
        Text(SHORT_DURATION_PATTERN, rule=grammar.session_duration, example="1h"),
        "Length of a role session, 15m to 12h.",
    )
    allowed_regions: tuple[str, ...] = required(
        "allowedRegions", Listing(_REGION, min_items=1, unique=True), "Regions the role may act in."
    )
    session_policy: str = required(
        "sessionPolicy",
        Choice(("minimal", "standard", "elevated")),
        "Breadth of the role; `minimal` is implemented.",
    )
    allowed_secret_paths: tuple[str, ...] = optional(
        "allowedSecretPaths", Listing(_SECRET), "Parameters exported as variables at start.", default=[]
    )


@frozen(kw_only=True)
class Sidecar:
    """One sidecar."""

    enabled: bool = required("enabled", _FLAG, "Whether it runs.")
    image: str = required("image", Text(min_length=1), "Container image, where sidecars are containers.")


@frozen(kw_only=True)
class Sidecars:
    """The processes beside the sandbox."""

    dns_proxy: Sidecar = _sidecar("dnsProxy", "DNS filter.")
    http_proxy: Sidecar = _sidecar("httpProxy", "HTTP filter, metering, injection.")
    audit_log: Sidecar = _sidecar("auditLog", "Audit log.")
    tracing: Sidecar = _sidecar("tracing", "Telemetry collector.")


@frozen(kw_only=True)
class LogTarget:
    """Where a log goes."""

    destination: str = required("destination", _LOG_SINK, "Destination.")
    log_group: str = optional("logGroup", _TEXT, "Log group, or prefix in the bucket.", default="")


@frozen(kw_only=True)
class ClaudeTelemetry:
    """Telemetry of the agent."""

    enabled: bool = optional("enabled", _FLAG, "Export telemetry.", default=True)
    log_prompts: bool = optional("logPrompts", _FLAG, "Include prompts.", default=False)
    log_tool_details: bool = optional("logToolDetails", _FLAG, "Include tool details.", default=False)


@frozen(kw_only=True)
class TlsCapture:
    """Observation of TLS libraries."""

    enabled: bool = required("enabled", _FLAG, "Observe TLS calls.")
    libraries: tuple[str, ...] = optional(
        "libraries",
        Listing(Choice(("openssl", "gnutls", "nss", "go", "rustls", "all"))),
        "Libraries; `all` is every one.",
        default=["openssl"],
    )
    capture_payloads: bool = optional(
        "capturePayloads", _FLAG, "Payloads too, not just sizes and directions.", default=False
    )


@frozen(kw_only=True)
class Observability:
    """Logs and telemetry."""

    command_log: LogTarget = optional(
        "commandLog", Section(LogTarget), "Command log.", default=_log("/klanker-maker/sandboxes")
    )
    network_log: LogTarget = optional(
        "networkLog", Section(LogTarget), "Network log.", default=_log("/klanker-maker/network")
    )
    claude_telemetry: ClaudeTelemetry = optional(
        "claudeTelemetry", Section(ClaudeTelemetry), "Telemetry of the agent.", default={}
    )
    tls_capture: TlsCapture | None = optional(
        "tlsCapture", Section(TlsCapture), "Observation of TLS libraries."
    )
    learn_mode: bool = optional(
        "learnMode", _FLAG, "Record what is reached, for a new profile.", default=False
    )


@frozen(kw_only=True)
class Agent:
    """Bounds of agent runs."""

    max_concurrent_tasks: int = required(
        "maxConcurrentTasks", Number(1, 10_000, whole=True), "Runs at a time."
    )
    task_timeout: str = required(
        "taskTimeout",
        Text(SHORT_DURATION_PATTERN, rule=grammar.short_duration, example="30m"),
        "Longest run.",
    )
    allowed_tools: tuple[str, ...] | None = optional(
        "allowedTools", Listing(Text(min_length=1)), "Tools the agent may use; absent allows every tool."
    )


@frozen(kw_only=True)
class Artifacts:
    """Files kept when a sandbox ends."""

    paths: tuple[str, ...] = optional(
        "paths", Listing(Text(rule=grammar.artifact_path)), "Absolute paths and globs.", default=[]
    )
    max_size_mb: int = optional(
        "maxSizeMB", Number(0, 10_000_000, whole=True), "Largest file in MB; 0 is unlimited.", default=0
    )
    replication_region: str | None = optional("replicationRegion", _REGION, "Region of a second copy.")


@frozen(kw_only=True)
class Ceiling:
    """One budget."""

    max_spend_usd: float = required(
        "maxSpendUSD", _DOLLARS, "Ceiling in dollars; 0 means nothing may be spent."
    )


@frozen(kw_only=True)
class Budget:
    """Dollar ceilings; a part that is absent has none."""

    compute: Ceiling | None = optional("compute", Section(Ceiling), "Compute spend.")
    ai: Ceiling | None = optional("ai", Section(Ceiling), "Model spend, reserved before each call leaves.")
    warning_threshold: float = optional(
        "warningThreshold", Number(0, 1), "Share of a ceiling that warns; 0 is read as 0.8.", default=0.8
    )


@frozen(kw_only=True)
class Email:
    """Policy of the sandbox's mailbox."""

    signing: str = optional("signing", _MAIL, "Signatures on outgoing mail.", default="optional")
    verify_inbound: str = optional("verifyInbound", _MAIL, "Signatures on incoming mail.", default="optional")
    encryption: str = optional("encryption", _MAIL, "Encryption between sandboxes.", default="off")
    alias: str | None = optional(
        "alias",
        Text(grammar.MAIL_ALIAS_PATTERN, "must be two words joined by one dot", "build.frontend"),
        "Mail name.",
    )
    allowed_senders: tuple[str, ...] = optional(
        "allowedSenders",
        Listing(
            Text(
                grammar.SENDER_PATTERN,
                "is no sender: self, *, a sandbox id, an alias (build.*), an address or *@domain",
                min_length=1,
            )
        ),
        "Who may write to it; empty does not filter.",
        default=[],
    )


@frozen(kw_only=True)
class Otp:
    """Secrets for one use."""

    secrets: tuple[str, ...] = optional(
        "secrets", Listing(_SECRET), "Parameters read once at start and then deleted.", default=[]
    )


@frozen(kw_only=True)
class Cli:
    """The operator's side, and notifications.  Booleans without a default keep unset apart from false."""

    no_bedrock: bool = optional(
        "noBedrock", _FLAG, "Direct model API for `km shell` and `km agent`.", default=False
    )
    claude_args: tuple[str, ...] = optional(
        "claudeArgs", Listing(_TEXT), "Arguments of the agent's command line.", default=[]
    )
    codex_args: tuple[str, ...] = optional(
        "codexArgs", Listing(_TEXT), "Arguments of the agent's command line.", default=[]
    )
    notify_on_permission: bool = optional(
        "notifyOnPermission", _FLAG, "Notify when the agent asks for permission.", default=False
    )
    notify_on_idle: bool = optional("notifyOnIdle", _FLAG, "Notify when the agent is idle.", default=False)
    notify_cooldown_seconds: int = optional(
        "notifyCooldownSeconds",
        Number(0, 31_536_000, whole=True),
        "Seconds between notifications.",
        default=0,
    )
    notification_email_address: str | None = optional(
        "notificationEmailAddress",
        Text(grammar.ADDRESS_PATTERN, "is no mail address", "ops@example.com"),
        "Where notifications go.",
    )
    notify_email_enabled: bool | None = optional("notifyEmailEnabled", _FLAG, "Notify by mail; unset is on.")
    notify_slack_enabled: bool | None = optional(
        "notifySlackEnabled", _FLAG, "Notify by Slack; unset is off."
    )
    notify_slack_per_sandbox: bool = optional(
        "notifySlackPerSandbox", _FLAG, "A channel for each sandbox.", default=False
    )
    notify_slack_channel_override: str | None = optional(
        "notifySlackChannelOverride",
        Text("C[A-Z0-9]+", "is no channel id", "C0123456789"),
        "A fixed channel.",
    )
    slack_archive_on_destroy: bool | None = optional(
        "slackArchiveOnDestroy", _FLAG, "Archive the channel at the end; unset is true."
    )
    notify_slack_inbound_enabled: bool = optional(
        "notifySlackInboundEnabled", _FLAG, "Messages in the channel reach the agent.", default=False
    )
    notify_slack_transcript_enabled: bool = optional(
        "notifySlackTranscriptEnabled", _FLAG, "Stream the transcript to the channel.", default=False
    )
    vscode_enabled: bool | None = optional("vscodeEnabled", _FLAG, "Remote editor access; unset is true.")


@frozen(kw_only=True)
class Spec:
    """The policy itself."""

    lifecycle: Lifecycle = required("lifecycle", Section(Lifecycle), "How long a sandbox lives.")
    runtime: Runtime = required("runtime", Section(Runtime), "Where it runs.")
    execution: Execution = required("execution", Section(Execution), "What runs inside.")
    source_access: SourceAccess = required("sourceAccess", Section(SourceAccess), "Access to repositories.")
    network: Network = required("network", Section(Network), "Network policy.")
    identity: Identity = required("identity", Section(Identity), "Cloud identity.")
    sidecars: Sidecars = optional("sidecars", Section(Sidecars), "Processes beside the sandbox.", default={})
    observability: Observability = optional(
        "observability", Section(Observability), "Logs and telemetry.", default={}
    )
    agent: Agent = optional(
        "agent",
        Section(Agent),
        "Bounds of agent runs.",
        default={"maxConcurrentTasks": 1, "taskTimeout": "30m"},
    )
    artifacts: Artifacts | None = optional("artifacts", Section(Artifacts), "Files kept at the end.")
    budget: Budget | None = optional("budget", Section(Budget), "Dollar ceilings.")
    email: Email | None = optional("email", Section(Email), "Mail policy.")
    otp: Otp | None = optional("otp", Section(Otp), "Secrets for one use.")
    cli: Cli | None = optional("cli", Section(Cli), "Operator's side and notifications.")
    plugins: Mapping[str, Any] = field(factory=dict)
    """Sections of plugins by key, as instances of their own models."""


@frozen(kw_only=True)
class SandboxProfile:
    """A whole profile, merged and with its defaults."""

    api_version: str = required(
        "apiVersion",
        Text(r".+/v1alpha1", "is not a version this km reads", "klankermaker.ai/v1alpha1"),
        "Version of the format.",
    )
    kind: str = required("kind", Choice(("SandboxProfile",)), "Kind of document.")
    metadata: Metadata = required("metadata", Section(Metadata), "Who the profile is.")
    extends: str | None = optional(
        "extends",
        Text(grammar.NAME_PATTERN, "is no profile name: no path, no extension", "restricted-dev"),
        "Name of the parent profile.",
    )
    spec: Spec = required("spec", Section(Spec), "The policy itself.")


MODELS: Mapping[str, type] = {"v1alpha1": SandboxProfile}
"""Model class by version: the last part of `apiVersion`."""
