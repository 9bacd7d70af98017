-- The tables of Dify 1.12.1 that the guard reads, with all their columns and indexes.
-- Defaults are PostgreSQL's own; the ids' would need an extension.

CREATE TABLE apps (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(), tenant_id uuid NOT NULL, name varchar(255) NOT NULL,
    mode varchar(255) NOT NULL, icon varchar(255), icon_background varchar(255), app_model_config_id uuid,
    status varchar(255) NOT NULL DEFAULT 'normal', enable_site boolean NOT NULL, enable_api boolean NOT NULL,
    api_rpm integer NOT NULL DEFAULT 0, api_rph integer NOT NULL DEFAULT 0,
    is_demo boolean NOT NULL DEFAULT false, is_public boolean NOT NULL DEFAULT false,
    created_at timestamp NOT NULL DEFAULT CURRENT_TIMESTAMP(0),
    updated_at timestamp NOT NULL DEFAULT CURRENT_TIMESTAMP(0), is_universal boolean NOT NULL DEFAULT false,
    workflow_id uuid, description text NOT NULL DEFAULT '', tracing text, max_active_requests integer,
    icon_type varchar(255), created_by uuid, updated_by uuid,
    use_icon_as_answer_icon boolean NOT NULL DEFAULT false
);
CREATE TABLE sites (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(), app_id uuid NOT NULL, title varchar(255) NOT NULL,
    icon varchar(255), icon_background varchar(255), description text, default_language varchar(255) NOT NULL,
    copyright varchar(255), privacy_policy varchar(255), customize_domain varchar(255),
    customize_token_strategy varchar(255) NOT NULL, prompt_public boolean NOT NULL DEFAULT false,
    status varchar(255) NOT NULL DEFAULT 'normal', created_at timestamp NOT NULL DEFAULT CURRENT_TIMESTAMP(0),
    updated_at timestamp NOT NULL DEFAULT CURRENT_TIMESTAMP(0), code varchar(255),
    custom_disclaimer text NOT NULL, show_workflow_steps boolean NOT NULL DEFAULT true,
    chat_color_theme varchar(255), chat_color_theme_inverted boolean NOT NULL DEFAULT false,
    icon_type varchar(255), created_by uuid, updated_by uuid,
    use_icon_as_answer_icon boolean NOT NULL DEFAULT false
);
CREATE TABLE api_tokens (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(), app_id uuid, type varchar(16) NOT NULL,
    token varchar(255) NOT NULL, last_used_at timestamp,
    created_at timestamp NOT NULL DEFAULT CURRENT_TIMESTAMP(0), tenant_id uuid
);
CREATE TABLE conversations (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(), app_id uuid NOT NULL, app_model_config_id uuid,
    model_provider varchar(255), override_model_configs text, model_id varchar(255),
    mode varchar(255) NOT NULL, name varchar(255) NOT NULL, summary text, inputs json NOT NULL,
    introduction text, system_instruction text, system_instruction_tokens integer NOT NULL DEFAULT 0,
    status varchar(255) NOT NULL, from_source varchar(255) NOT NULL, from_end_user_id uuid,
    from_account_id uuid, read_at timestamp, read_account_id uuid,
    created_at timestamp NOT NULL DEFAULT CURRENT_TIMESTAMP(0),
    updated_at timestamp NOT NULL DEFAULT CURRENT_TIMESTAMP(0), is_deleted boolean NOT NULL DEFAULT false,
    invoke_from varchar(255), dialogue_count integer NOT NULL DEFAULT 0
);
CREATE TABLE messages (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(), app_id uuid NOT NULL, model_provider varchar(255),
    model_id varchar(255), override_model_configs text, conversation_id uuid NOT NULL, inputs json NOT NULL,
    query text NOT NULL, message json NOT NULL, message_tokens integer NOT NULL DEFAULT 0,
    message_unit_price numeric NOT NULL, answer text NOT NULL, answer_tokens integer NOT NULL DEFAULT 0,
    answer_unit_price numeric NOT NULL, provider_response_latency double precision NOT NULL DEFAULT 0,
    total_price numeric, currency varchar(255) NOT NULL, from_source varchar(255) NOT NULL,
    from_end_user_id uuid, from_account_id uuid, created_at timestamp NOT NULL DEFAULT CURRENT_TIMESTAMP(0),
    updated_at timestamp NOT NULL DEFAULT CURRENT_TIMESTAMP(0), agent_based boolean NOT NULL DEFAULT false,
    message_price_unit numeric NOT NULL DEFAULT 0.001, answer_price_unit numeric NOT NULL DEFAULT 0.001,
    workflow_run_id uuid, status varchar(255) NOT NULL DEFAULT 'normal', error text, message_metadata text,
    invoke_from varchar(255), parent_message_id uuid, app_mode varchar(255)
);
CREATE TABLE message_annotations (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(), app_id uuid NOT NULL, conversation_id uuid,
    message_id uuid, content text NOT NULL, account_id uuid NOT NULL,
    created_at timestamp NOT NULL DEFAULT CURRENT_TIMESTAMP(0),
    updated_at timestamp NOT NULL DEFAULT CURRENT_TIMESTAMP(0), question text NOT NULL,
    hit_count integer NOT NULL DEFAULT 0
);
CREATE TABLE workflow_runs (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(), tenant_id uuid NOT NULL, app_id uuid NOT NULL,
    workflow_id uuid NOT NULL, type varchar(255) NOT NULL, triggered_from varchar(255) NOT NULL,
    version varchar(255) NOT NULL, graph text, inputs text, status varchar(255) NOT NULL, outputs text,
    error text, elapsed_time double precision NOT NULL DEFAULT 0, total_tokens bigint NOT NULL DEFAULT 0,
    total_steps integer DEFAULT 0, created_by_role varchar(255) NOT NULL, created_by uuid NOT NULL,
    created_at timestamp NOT NULL DEFAULT CURRENT_TIMESTAMP(0), finished_at timestamp,
    exceptions_count integer DEFAULT 0
);
CREATE TABLE datasets (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(), tenant_id uuid NOT NULL, name varchar(255) NOT NULL,
    description text, provider varchar(255) NOT NULL DEFAULT 'vendor',
    permission varchar(255) NOT NULL DEFAULT 'only_me', data_source_type varchar(255),
    indexing_technique varchar(255), index_struct text, created_by uuid NOT NULL,
    created_at timestamp NOT NULL DEFAULT CURRENT_TIMESTAMP(0), updated_by uuid,
    updated_at timestamp NOT NULL DEFAULT CURRENT_TIMESTAMP(0),
    embedding_model varchar(255) DEFAULT 'text-embedding-ada-002',
    embedding_model_provider varchar(255) DEFAULT 'openai', collection_binding_id uuid, retrieval_model jsonb,
    built_in_field_enabled boolean NOT NULL DEFAULT false, keyword_number integer DEFAULT 10, icon_info jsonb,
    runtime_mode varchar(255) DEFAULT 'general', pipeline_id uuid, chunk_structure varchar(255),
    enable_api boolean NOT NULL DEFAULT true, is_multimodal boolean NOT NULL DEFAULT false,
    summary_index_setting jsonb
);
CREATE TABLE documents (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(), tenant_id uuid NOT NULL, dataset_id uuid NOT NULL,
    position integer NOT NULL, data_source_type varchar(255) NOT NULL, data_source_info text,
    dataset_process_rule_id uuid, batch varchar(255) NOT NULL, name varchar(255) NOT NULL,
    created_from varchar(255) NOT NULL, created_by uuid NOT NULL, created_api_request_id uuid,
    created_at timestamp NOT NULL DEFAULT CURRENT_TIMESTAMP(0), processing_started_at timestamp, file_id text,
    word_count integer, parsing_completed_at timestamp, cleaning_completed_at timestamp,
    splitting_completed_at timestamp, tokens integer, indexing_latency double precision,
    completed_at timestamp, is_paused boolean DEFAULT false, paused_by uuid, paused_at timestamp, error text,
    stopped_at timestamp, indexing_status varchar(255) NOT NULL DEFAULT 'waiting',
    enabled boolean NOT NULL DEFAULT true, disabled_at timestamp, disabled_by uuid,
    archived boolean NOT NULL DEFAULT false, archived_reason varchar(255), archived_by uuid,
    archived_at timestamp, updated_at timestamp NOT NULL DEFAULT CURRENT_TIMESTAMP(0), doc_type varchar(40),
    doc_metadata jsonb, doc_form varchar(255) NOT NULL DEFAULT 'text_model', doc_language varchar(255),
    need_summary boolean NOT NULL DEFAULT false
);
CREATE TABLE document_segments (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(), tenant_id uuid NOT NULL, dataset_id uuid NOT NULL,
    document_id uuid NOT NULL, position integer NOT NULL, content text NOT NULL, word_count integer NOT NULL,
    tokens integer NOT NULL, keywords json, index_node_id varchar(255), index_node_hash varchar(255),
    hit_count integer NOT NULL, enabled boolean NOT NULL DEFAULT true, disabled_at timestamp,
    disabled_by uuid, status varchar(255) NOT NULL DEFAULT 'waiting', created_by uuid NOT NULL,
    created_at timestamp NOT NULL DEFAULT CURRENT_TIMESTAMP(0), indexing_at timestamp, completed_at timestamp,
    error text, stopped_at timestamp, answer text, updated_by uuid,
    updated_at timestamp NOT NULL DEFAULT CURRENT_TIMESTAMP(0)
);
CREATE TABLE child_chunks (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(), tenant_id uuid NOT NULL, dataset_id uuid NOT NULL,
    document_id uuid NOT NULL, segment_id uuid NOT NULL, position integer NOT NULL, content text NOT NULL,
    word_count integer NOT NULL, index_node_id varchar(255), index_node_hash varchar(255),
    type varchar(255) NOT NULL DEFAULT 'automatic', created_by uuid NOT NULL,
    created_at timestamp NOT NULL DEFAULT CURRENT_TIMESTAMP(0), updated_by uuid,
    updated_at timestamp NOT NULL DEFAULT CURRENT_TIMESTAMP(0), indexing_at timestamp, completed_at timestamp,
    error text
);
CREATE TABLE upload_files (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(), tenant_id uuid NOT NULL,
    storage_type varchar(255) NOT NULL, key varchar(255) NOT NULL, name varchar(255) NOT NULL,
    size integer NOT NULL, extension varchar(255) NOT NULL, mime_type varchar(255), created_by uuid NOT NULL,
    created_at timestamp NOT NULL DEFAULT CURRENT_TIMESTAMP(0), used boolean NOT NULL DEFAULT false,
    used_by uuid, used_at timestamp, hash varchar(255),
    created_by_role varchar(255) NOT NULL DEFAULT 'account', source_url text NOT NULL DEFAULT ''
);
