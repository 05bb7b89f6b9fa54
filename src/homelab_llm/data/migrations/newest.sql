CREATE TABLE alembic_version (
	version_num VARCHAR(32) NOT NULL, 
	CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num)
);
INSERT INTO "alembic_version" VALUES('0003');
CREATE TABLE assignments (
	port INTEGER NOT NULL, 
	desired TEXT, 
	actual TEXT DEFAULT '' NOT NULL, 
	last_good TEXT DEFAULT '' NOT NULL, 
	foreign_model TEXT DEFAULT '' NOT NULL, 
	last_failure TEXT DEFAULT '' NOT NULL, 
	failed_unix_s DOUBLE DEFAULT 0 NOT NULL, 
	changed_unix_s DOUBLE DEFAULT 0 NOT NULL, 
	CONSTRAINT pk_assignments PRIMARY KEY (port), 
	CONSTRAINT uq_assignments_desired UNIQUE (desired), 
	CONSTRAINT fk_assignments_desired FOREIGN KEY(desired) REFERENCES registry_entries (slug) DEFERRABLE INITIALLY DEFERRED
);
CREATE TABLE deployments (
	deployment_id INTEGER NOT NULL, 
	worker_id TEXT DEFAULT '' NOT NULL, 
	model TEXT DEFAULT '' NOT NULL, 
	engine TEXT DEFAULT '' NOT NULL, 
	port BIGINT DEFAULT 0 NOT NULL, 
	pid BIGINT DEFAULT 0 NOT NULL, 
	started_unix_s DOUBLE DEFAULT 0 NOT NULL, 
	ready_unix_s DOUBLE, 
	ended_unix_s DOUBLE, 
	reason TEXT DEFAULT '' NOT NULL, 
	footprint_bytes BIGINT DEFAULT 0 NOT NULL, 
	CONSTRAINT pk_deployments PRIMARY KEY (deployment_id)
);
CREATE TABLE endpoints (
	endpoint_id INTEGER NOT NULL, 
	service_id TEXT NOT NULL, 
	kind TEXT DEFAULT '' NOT NULL, 
	method TEXT DEFAULT '' NOT NULL, 
	url TEXT DEFAULT '' NOT NULL, 
	doc TEXT DEFAULT '' NOT NULL, 
	CONSTRAINT pk_endpoints PRIMARY KEY (endpoint_id), 
	CONSTRAINT uq_endpoints_service_id_method_url UNIQUE (service_id, method, url), 
	CONSTRAINT fk_endpoints_service_id FOREIGN KEY(service_id) REFERENCES services (service_id) ON DELETE CASCADE
);
CREATE TABLE events (
	event_id INTEGER NOT NULL, 
	unix_s DOUBLE DEFAULT 0 NOT NULL, 
	kind TEXT DEFAULT '' NOT NULL, 
	level TEXT DEFAULT '' NOT NULL, 
	service TEXT DEFAULT '' NOT NULL, 
	model TEXT DEFAULT '' NOT NULL, 
	port BIGINT DEFAULT 0 NOT NULL, 
	text TEXT DEFAULT '' NOT NULL, 
	facts_json TEXT DEFAULT '{}' NOT NULL, 
	CONSTRAINT pk_events PRIMARY KEY (event_id)
);
CREATE TABLE footprints (
	"key" TEXT NOT NULL, 
	digest TEXT DEFAULT '' NOT NULL, 
	measured_bytes BIGINT DEFAULT 0 NOT NULL, 
	measured_unix_s DOUBLE DEFAULT 0 NOT NULL, 
	CONSTRAINT pk_footprints PRIMARY KEY ("key")
);
CREATE TABLE hosts (
	host_id TEXT NOT NULL, 
	system TEXT DEFAULT '' NOT NULL, 
	architecture TEXT DEFAULT '' NOT NULL, 
	memory_bytes BIGINT DEFAULT 0 NOT NULL, 
	cpus BIGINT DEFAULT 0 NOT NULL, 
	version TEXT DEFAULT '' NOT NULL, 
	doc TEXT DEFAULT '' NOT NULL, 
	first_seen_unix_s DOUBLE DEFAULT 0 NOT NULL, 
	last_seen_unix_s DOUBLE DEFAULT 0 NOT NULL, 
	CONSTRAINT pk_hosts PRIMARY KEY (host_id)
);
CREATE TABLE jobs (
	job_id TEXT NOT NULL, 
	kind TEXT DEFAULT '' NOT NULL, 
	parameters_json TEXT DEFAULT '{}' NOT NULL, 
	state TEXT DEFAULT '' NOT NULL, 
	stage TEXT DEFAULT '' NOT NULL, 
	file TEXT DEFAULT '' NOT NULL, 
	done_bytes BIGINT DEFAULT 0 NOT NULL, 
	total_bytes BIGINT, 
	bytes_per_s DOUBLE DEFAULT 0 NOT NULL, 
	attempts BIGINT DEFAULT 0 NOT NULL, 
	error_code TEXT DEFAULT '' NOT NULL, 
	error_message TEXT DEFAULT '' NOT NULL, 
	error_hint TEXT DEFAULT '' NOT NULL, 
	error_facts_json TEXT DEFAULT '{}' NOT NULL, 
	result_json TEXT DEFAULT '{}' NOT NULL, 
	created_unix_s DOUBLE DEFAULT 0 NOT NULL, 
	started_unix_s DOUBLE, 
	finished_unix_s DOUBLE, 
	host_id TEXT DEFAULT '' NOT NULL, 
	doc TEXT DEFAULT '' NOT NULL, 
	CONSTRAINT pk_jobs PRIMARY KEY (job_id)
);
CREATE TABLE key_meta (
	id INTEGER NOT NULL, 
	revision BIGINT DEFAULT 0 NOT NULL, 
	CONSTRAINT pk_key_meta PRIMARY KEY (id)
);
INSERT INTO "key_meta" VALUES(1,0);
CREATE TABLE keys (
	name TEXT NOT NULL, 
	scopes TEXT DEFAULT '' NOT NULL, 
	priority TEXT DEFAULT 'interactive' NOT NULL, 
	sha256 TEXT DEFAULT '' NOT NULL, 
	hint TEXT DEFAULT '' NOT NULL, 
	created_unix_s DOUBLE DEFAULT 0 NOT NULL, 
	CONSTRAINT pk_keys PRIMARY KEY (name)
);
CREATE TABLE model_files (
	model TEXT NOT NULL, 
	file TEXT NOT NULL, 
	path TEXT DEFAULT '' NOT NULL, 
	size_bytes BIGINT DEFAULT 0 NOT NULL, 
	CONSTRAINT pk_model_files PRIMARY KEY (model, file), 
	CONSTRAINT fk_model_files_model FOREIGN KEY(model) REFERENCES models (model) ON DELETE CASCADE
);
CREATE TABLE models (
	model TEXT NOT NULL, 
	digest TEXT DEFAULT '' NOT NULL, 
	size_on_disk_bytes BIGINT DEFAULT 0 NOT NULL, 
	weights_bytes BIGINT DEFAULT 0 NOT NULL, 
	footprint_estimated_bytes BIGINT DEFAULT 0 NOT NULL, 
	footprint_measured_bytes BIGINT DEFAULT 0 NOT NULL, 
	format TEXT DEFAULT '' NOT NULL, 
	architecture TEXT DEFAULT '' NOT NULL, 
	parameters BIGINT DEFAULT 0 NOT NULL, 
	quantization TEXT DEFAULT '' NOT NULL, 
	context_tokens BIGINT DEFAULT 0 NOT NULL, 
	licence TEXT DEFAULT '' NOT NULL, 
	source TEXT DEFAULT '' NOT NULL, 
	doc TEXT DEFAULT '' NOT NULL, 
	created_unix_s DOUBLE DEFAULT 0 NOT NULL, 
	updated_unix_s DOUBLE DEFAULT 0 NOT NULL, capabilities TEXT DEFAULT '' NOT NULL, kv_bytes_per_token BIGINT DEFAULT 0 NOT NULL, memory_4k_bytes BIGINT DEFAULT 0 NOT NULL, memory_32k_bytes BIGINT DEFAULT 0 NOT NULL, memory_full_bytes BIGINT DEFAULT 0 NOT NULL, engine TEXT DEFAULT '' NOT NULL, engine_reason TEXT DEFAULT '' NOT NULL, pulled_from TEXT DEFAULT '' NOT NULL, base TEXT DEFAULT '' NOT NULL, action TEXT DEFAULT '' NOT NULL, 
	CONSTRAINT pk_models PRIMARY KEY (model)
);
CREATE TABLE registry_entries (
	slug TEXT NOT NULL, 
	model_id TEXT DEFAULT '' NOT NULL, 
	repo_id TEXT DEFAULT '' NOT NULL, 
	cache_path TEXT DEFAULT '' NOT NULL, 
	format TEXT DEFAULT '' NOT NULL, 
	source_path TEXT DEFAULT '' NOT NULL, 
	chat_template TEXT DEFAULT '' NOT NULL, 
	tool_call_parser TEXT DEFAULT '' NOT NULL, 
	reasoning_parser TEXT DEFAULT '' NOT NULL, 
	context_length BIGINT DEFAULT 0 NOT NULL, 
	max_output_tokens BIGINT DEFAULT 0 NOT NULL, 
	request_params_json TEXT DEFAULT '{}' NOT NULL, 
	draft_model TEXT DEFAULT '' NOT NULL, 
	engine TEXT DEFAULT '' NOT NULL, 
	flags_json TEXT DEFAULT '[]' NOT NULL, 
	pinned BOOLEAN DEFAULT 0 NOT NULL, 
	keep_alive_s DOUBLE, 
	extra_json TEXT DEFAULT '{}' NOT NULL, 
	CONSTRAINT pk_registry_entries PRIMARY KEY (slug)
);
CREATE TABLE registry_exports (
	place TEXT NOT NULL, 
	exported_sha256 TEXT DEFAULT '' NOT NULL, 
	before_sha256 TEXT DEFAULT '' NOT NULL, 
	CONSTRAINT pk_registry_exports PRIMARY KEY (place)
);
CREATE TABLE registry_meta (
	id INTEGER NOT NULL, 
	revision BIGINT DEFAULT 0 NOT NULL, 
	CONSTRAINT pk_registry_meta PRIMARY KEY (id)
);
INSERT INTO "registry_meta" VALUES(1,0);
CREATE TABLE requests (
	row_id INTEGER NOT NULL, 
	request_id TEXT DEFAULT '' NOT NULL, 
	started_unix_s DOUBLE DEFAULT 0 NOT NULL, 
	endpoint TEXT DEFAULT '' NOT NULL, 
	model TEXT DEFAULT '' NOT NULL, 
	alias TEXT DEFAULT '' NOT NULL, 
	port BIGINT DEFAULT 0 NOT NULL, 
	"key" TEXT DEFAULT '' NOT NULL, 
	priority TEXT DEFAULT 'interactive' NOT NULL, 
	status BIGINT DEFAULT 0 NOT NULL, 
	error TEXT DEFAULT '' NOT NULL, 
	streamed BOOLEAN DEFAULT 0 NOT NULL, 
	wait_ms DOUBLE DEFAULT 0 NOT NULL, 
	first_token_ms DOUBLE DEFAULT 0 NOT NULL, 
	total_ms DOUBLE DEFAULT 0 NOT NULL, 
	prompt_tokens BIGINT DEFAULT 0 NOT NULL, 
	cached_tokens BIGINT DEFAULT 0 NOT NULL, 
	completion_tokens BIGINT DEFAULT 0 NOT NULL, 
	client TEXT DEFAULT '' NOT NULL, 
	facts_json TEXT DEFAULT '{}' NOT NULL, 
	CONSTRAINT pk_requests PRIMARY KEY (row_id)
);
CREATE TABLE services (
	service_id TEXT NOT NULL, 
	host_id TEXT NOT NULL, 
	layer TEXT DEFAULT '' NOT NULL, 
	label TEXT DEFAULT '' NOT NULL, 
	state TEXT DEFAULT '' NOT NULL, 
	base_url TEXT DEFAULT '' NOT NULL, 
	health_url TEXT DEFAULT '' NOT NULL, 
	doc TEXT DEFAULT '' NOT NULL, 
	created_unix_s DOUBLE DEFAULT 0 NOT NULL, 
	updated_unix_s DOUBLE DEFAULT 0 NOT NULL, 
	CONSTRAINT pk_services PRIMARY KEY (service_id), 
	CONSTRAINT fk_services_host_id FOREIGN KEY(host_id) REFERENCES hosts (host_id)
);
CREATE TABLE slots (
	port INTEGER NOT NULL, 
	alias TEXT NOT NULL, 
	CONSTRAINT pk_slots PRIMARY KEY (port), 
	CONSTRAINT uq_slots_alias UNIQUE (alias)
);
CREATE INDEX ix_deployments_model_started_unix_s ON deployments (model, started_unix_s);
CREATE INDEX ix_deployments_worker_id ON deployments (worker_id);
CREATE INDEX ix_events_service_event_id ON events (service, event_id);
CREATE INDEX ix_events_unix_s ON events (unix_s);
CREATE INDEX ix_footprints_digest ON footprints (digest);
CREATE INDEX ix_jobs_created_unix_s ON jobs (created_unix_s);
CREATE INDEX ix_jobs_state ON jobs (state);
CREATE INDEX ix_registry_entries_model_id ON registry_entries (model_id);
CREATE INDEX ix_requests_model_started_unix_s ON requests (model, started_unix_s);
CREATE INDEX ix_requests_request_id ON requests (request_id);
CREATE INDEX ix_requests_started_unix_s ON requests (started_unix_s);
CREATE VIEW v_errors AS
SELECT started_unix_s AS unix_s, 'request' AS source, 'error' AS level, error AS code, model, port, endpoint AS place,
    request_id AS text
FROM requests WHERE error <> ''
UNION ALL
SELECT unix_s, 'event' AS source, level, kind AS code, model, port, service AS place, text
FROM events WHERE level IN ('warning', 'error');
CREATE VIEW v_jobs_recent AS
SELECT job_id, kind, state, stage, done_bytes, total_bytes,
    CASE WHEN total_bytes > 0 THEN done_bytes * 1.0 / total_bytes END AS share, bytes_per_s,
    created_unix_s, started_unix_s, finished_unix_s, started_unix_s - created_unix_s AS waited_s,
    finished_unix_s - started_unix_s AS took_s, error_code, error_message, error_hint, parameters_json, host_id
FROM jobs
ORDER BY created_unix_s DESC, job_id;
CREATE VIEW v_model_capacity AS
SELECT model, size_on_disk_bytes, memory_bytes, memory_source, weights_bytes, memory_4k_bytes, memory_32k_bytes,
    memory_full_bytes, format, architecture, parameters, quantization, context_tokens, capabilities, licence, engine,
    RANK() OVER (ORDER BY size_on_disk_bytes DESC) AS size_rank,
    RANK() OVER (ORDER BY memory_bytes DESC) AS memory_rank
FROM (
    SELECT m.*,
        CASE
            WHEN footprint_measured_bytes > 0 THEN footprint_measured_bytes
            WHEN footprint_estimated_bytes > 0 THEN footprint_estimated_bytes
            ELSE weights_bytes
        END AS memory_bytes,
        CASE
            WHEN footprint_measured_bytes > 0 THEN 'measured'
            WHEN footprint_estimated_bytes > 0 THEN 'estimated'
            ELSE 'weights'
        END AS memory_source
    FROM models m
) weighed
ORDER BY size_on_disk_bytes DESC, memory_bytes DESC, model;
CREATE VIEW v_model_deployments AS
SELECT d.deployment_id, d.model, d.engine, d.port, d.worker_id, d.pid,
    CASE WHEN d.ended_unix_s IS NULL THEN 1 ELSE 0 END AS active,
    d.started_unix_s, d.ready_unix_s, d.ended_unix_s, d.ready_unix_s - d.started_unix_s AS load_s, d.reason,
    d.footprint_bytes, COALESCE(m.format, '') AS format, COALESCE(m.architecture, '') AS architecture,
    COALESCE(m.quantization, '') AS quantization, COALESCE(m.size_on_disk_bytes, 0) AS size_on_disk_bytes
FROM deployments d
LEFT JOIN models m ON m.model = d.model;
CREATE VIEW v_request_latency AS
SELECT model, hour_unix_s, COUNT(*) AS requests,
    MIN(CASE WHEN total_ms_rank * 100 >= 50 * total_ms_count AND total_ms > 0 THEN total_ms END) AS total_ms_p50,
    MIN(CASE WHEN total_ms_rank * 100 >= 95 * total_ms_count AND total_ms > 0 THEN total_ms END) AS total_ms_p95,
    MIN(CASE WHEN total_ms_rank * 100 >= 99 * total_ms_count AND total_ms > 0 THEN total_ms END) AS total_ms_p99,
    MIN(CASE WHEN first_token_ms_rank * 100 >= 50 * first_token_ms_count AND first_token_ms > 0 THEN first_token_ms END) AS first_token_ms_p50,
    MIN(CASE WHEN first_token_ms_rank * 100 >= 95 * first_token_ms_count AND first_token_ms > 0 THEN first_token_ms END) AS first_token_ms_p95,
    MIN(CASE WHEN first_token_ms_rank * 100 >= 99 * first_token_ms_count AND first_token_ms > 0 THEN first_token_ms END) AS first_token_ms_p99
FROM (
    SELECT model, hour_unix_s, total_ms, first_token_ms,
        ROW_NUMBER() OVER (PARTITION BY model, hour_unix_s ORDER BY total_ms) AS total_ms_rank,
        COUNT(*) OVER (PARTITION BY model, hour_unix_s) AS total_ms_count,
        ROW_NUMBER() OVER (PARTITION BY model, hour_unix_s, told ORDER BY first_token_ms) AS first_token_ms_rank,
        COUNT(*) OVER (PARTITION BY model, hour_unix_s, told) AS first_token_ms_count
    FROM (
        SELECT model, CAST(started_unix_s / 3600 AS INTEGER) * 3600 AS hour_unix_s, total_ms, first_token_ms,
            CASE WHEN first_token_ms > 0 THEN 1 ELSE 0 END AS told
        FROM requests WHERE status BETWEEN 200 AND 299 AND model <> ''
    ) answered
) ranked
GROUP BY model, hour_unix_s;
CREATE VIEW v_service_health AS
SELECT s.service_id, s.host_id, s.layer, s.label, s.state, s.updated_unix_s,
    CASE
        WHEN s.state = 'down' THEN 'down'
        WHEN s.state = 'failed' OR e.level = 'error' THEN 'error'
        WHEN e.level = 'warning' THEN 'warning'
        ELSE 'ok'
    END AS health,
    COALESCE(e.kind, '') AS event, COALESCE(e.level, '') AS level, COALESCE(e.text, '') AS text,
    COALESCE(e.unix_s, 0) AS event_unix_s, s.base_url, s.health_url
FROM services s
LEFT JOIN events e ON e.event_id = (SELECT MAX(l.event_id) FROM events l WHERE l.service = s.service_id);
CREATE VIEW v_slot_drift AS
SELECT p.port, COALESCE(s.alias, '') AS alias, COALESCE(a.desired, '') AS desired, COALESCE(a.actual, '') AS actual,
    COALESCE(a.last_good, '') AS last_good, COALESCE(a.foreign_model, '') AS foreign_model,
    COALESCE(a.last_failure, '') AS last_failure, COALESCE(a.changed_unix_s, 0) AS changed_unix_s,
    CASE
        WHEN s.port IS NULL AND a.desired IS NOT NULL THEN 'the node has no such slot'
        WHEN COALESCE(a.desired, '') = COALESCE(a.actual, '') THEN ''
        WHEN a.desired IS NULL THEN 'serves a model that is not assigned'
        WHEN a.last_failure <> '' THEN 'its model failed'
        WHEN a.actual = '' THEN 'its model was never proven to answer'
        ELSE 'serves another model'
    END AS drift
FROM (SELECT port FROM slots UNION SELECT port FROM assignments) p
LEFT JOIN slots s ON s.port = p.port
LEFT JOIN assignments a ON a.port = p.port;
CREATE VIEW v_usage AS
SELECT key, model, day, COUNT(*) AS requests, SUM(CASE WHEN error = '' THEN 0 ELSE 1 END) AS errors,
    SUM(prompt_tokens) AS prompt_tokens, SUM(cached_tokens) AS cached_tokens,
    SUM(completion_tokens) AS completion_tokens, SUM(total_ms) / 1000 AS total_s
FROM (SELECT r.*, strftime('%Y-%m-%d', r.started_unix_s, 'unixepoch') AS day FROM requests r) dated
GROUP BY key, model, day;
