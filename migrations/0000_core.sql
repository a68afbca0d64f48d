-- Keys, their workspaces, and what was done to them. Generated from src/storage/schema.ts; from "By hand" on, written.
CREATE TABLE "api_keys" (
	"id" uuid PRIMARY KEY NOT NULL,
	"workspace_id" text NOT NULL,
	"environment" text NOT NULL,
	"name" text NOT NULL,
	"prefix" text NOT NULL,
	"last_characters" text NOT NULL,
	"hash" text NOT NULL,
	"secret_id" smallint NOT NULL,
	"scopes" text[] NOT NULL,
	"restrictions" jsonb,
	"rate_limit" integer,
	"rate_limit_window_seconds" integer,
	"metadata" jsonb,
	"created_by" text,
	"created_at" timestamp (3) with time zone NOT NULL,
	"expires_at" timestamp (3) with time zone,
	"revoked_at" timestamp (3) with time zone,
	"revoked_reason" text,
	CONSTRAINT "api_keys_created_at_of_id" CHECK (('x' || left(replace("api_keys"."id"::text, '-', ''), 12))::bit(48)::bigint = (extract(epoch FROM "api_keys"."created_at") * 1000)::bigint),
	CONSTRAINT "api_keys_environment_form" CHECK ("api_keys"."environment" ~ '^[a-z][a-z0-9]{0,15}$'),
	CONSTRAINT "api_keys_service_environment" CHECK (("api_keys"."workspace_id" = 'system') = ("api_keys"."environment" = 'svc')),
	CONSTRAINT "api_keys_name_length" CHECK (char_length("api_keys"."name") BETWEEN 1 AND 120),
	CONSTRAINT "api_keys_prefix_form" CHECK ("api_keys"."prefix" ~ '^[a-z][a-z0-9]{0,15}_[a-z][a-z0-9]{0,15}_$'),
	CONSTRAINT "api_keys_last_characters_form" CHECK ("api_keys"."last_characters" ~ '^[0-9A-Za-z]{4}$'),
	CONSTRAINT "api_keys_hash_form" CHECK ("api_keys"."hash" ~ '^[$]argon2id[$]v=19[$]m=[0-9]+,t=[0-9]+,p=[0-9]+[$][A-Za-z0-9+/]{22,}[$][A-Za-z0-9+/]{43,}$'),
	CONSTRAINT "api_keys_scopes_count" CHECK (cardinality("api_keys"."scopes") <= 64 AND array_position("api_keys"."scopes", NULL) IS NULL),
	CONSTRAINT "api_keys_rate_limit_form" CHECK (num_nulls("api_keys"."rate_limit", "api_keys"."rate_limit_window_seconds") IN (0, 2) AND "api_keys"."rate_limit" >= 1 AND "api_keys"."rate_limit_window_seconds" BETWEEN 1 AND 2678400),
	CONSTRAINT "api_keys_reason_of_revoked" CHECK ("api_keys"."revoked_reason" IS NULL OR "api_keys"."revoked_at" IS NOT NULL)
);
--> statement-breakpoint
CREATE TABLE "audit_events" (
	"id" uuid PRIMARY KEY NOT NULL,
	"at" timestamp (3) with time zone NOT NULL,
	"action" text NOT NULL,
	"actor_key_id" uuid,
	"workspace_id" text NOT NULL,
	"key_id" uuid,
	"before" jsonb,
	"after" jsonb,
	"address" text,
	"request_id" text
);
--> statement-breakpoint
CREATE TABLE "key_secrets" (
	"id" smallint PRIMARY KEY GENERATED ALWAYS AS IDENTITY (sequence name "key_secrets_id_seq" INCREMENT BY 1 MINVALUE 1 MAXVALUE 32767 START WITH 1 CACHE 1),
	"fingerprint" "bytea" NOT NULL,
	CONSTRAINT "key_secrets_fingerprint_unique" UNIQUE("fingerprint")
);
--> statement-breakpoint
CREATE TABLE "workspaces" (
	"id" text PRIMARY KEY NOT NULL,
	CONSTRAINT "workspaces_id_form" CHECK ("workspaces"."id" ~ '^[A-Za-z0-9_.:-]{1,100}$' AND "workspaces"."id" NOT IN ('.', '..'))
);
--> statement-breakpoint
ALTER TABLE "api_keys" ADD CONSTRAINT "api_keys_workspace_id_workspaces_id_fk" FOREIGN KEY ("workspace_id") REFERENCES "public"."workspaces"("id") ON DELETE no action ON UPDATE no action;--> statement-breakpoint
ALTER TABLE "api_keys" ADD CONSTRAINT "api_keys_secret_id_key_secrets_id_fk" FOREIGN KEY ("secret_id") REFERENCES "public"."key_secrets"("id") ON DELETE no action ON UPDATE no action;--> statement-breakpoint
CREATE INDEX "api_keys_workspace" ON "api_keys" USING btree ("workspace_id","created_at","id");--> statement-breakpoint
CREATE INDEX "api_keys_workspace_environment" ON "api_keys" USING btree ("workspace_id","environment","created_at","id");--> statement-breakpoint
CREATE INDEX "api_keys_workspace_unrevoked" ON "api_keys" USING btree ("workspace_id","created_at","id") WHERE "api_keys"."revoked_at" IS NULL;--> statement-breakpoint
CREATE INDEX "api_keys_workspace_revoked" ON "api_keys" USING btree ("workspace_id","created_at","id") WHERE "api_keys"."revoked_at" IS NOT NULL;--> statement-breakpoint
CREATE INDEX "api_keys_created_by" ON "api_keys" USING btree ("created_by","created_at","id") WHERE "api_keys"."created_by" IS NOT NULL;--> statement-breakpoint
CREATE INDEX "api_keys_environment" ON "api_keys" USING btree ("environment","created_at","id") WHERE "api_keys"."prefix" <> '';--> statement-breakpoint
CREATE INDEX "api_keys_unrevoked" ON "api_keys" USING btree ("created_at","id") WHERE "api_keys"."revoked_at" IS NULL AND "api_keys"."prefix" <> '';--> statement-breakpoint
CREATE INDEX "api_keys_revoked" ON "api_keys" USING btree ("created_at","id") WHERE "api_keys"."revoked_at" IS NOT NULL AND "api_keys"."prefix" <> '';--> statement-breakpoint
CREATE INDEX "api_keys_name" ON "api_keys" USING btree ("name" text_pattern_ops,"id");--> statement-breakpoint
CREATE INDEX "api_keys_scopes" ON "api_keys" USING gin ("scopes");--> statement-breakpoint
CREATE INDEX "api_keys_expires_at" ON "api_keys" USING btree ("expires_at") WHERE "api_keys"."expires_at" IS NOT NULL;--> statement-breakpoint
CREATE INDEX "api_keys_secret" ON "api_keys" USING btree ("secret_id") WHERE "api_keys"."revoked_at" IS NULL;--> statement-breakpoint
CREATE INDEX "audit_events_workspace" ON "audit_events" USING btree ("workspace_id","id");--> statement-breakpoint
CREATE INDEX "audit_events_key" ON "audit_events" USING btree ("key_id","id");--> statement-breakpoint

-- By hand: what must never be, whoever asks.

CREATE FUNCTION "api_keys_guard"() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	IF OLD.revoked_at IS NOT NULL
		AND (NEW.revoked_at, NEW.revoked_reason) IS DISTINCT FROM (OLD.revoked_at, OLD.revoked_reason) THEN
		RAISE EXCEPTION 'a revocation is permanent' USING ERRCODE = 'integrity_constraint_violation';
	END IF;
	-- The hash belongs to the id, and the token that was handed out names id, prefix and environment.
	IF (NEW.id, NEW.workspace_id, NEW.environment, NEW.prefix, NEW.last_characters, NEW.secret_id, NEW.created_at)
		IS DISTINCT FROM
		(OLD.id, OLD.workspace_id, OLD.environment, OLD.prefix, OLD.last_characters, OLD.secret_id, OLD.created_at) THEN
		RAISE EXCEPTION 'a key never changes its id, workspace, environment or origin' USING ERRCODE = 'integrity_constraint_violation';
	END IF;
	RETURN NEW;
END
$$;
--> statement-breakpoint
CREATE TRIGGER "api_keys_guard" BEFORE UPDATE ON "api_keys" FOR EACH ROW EXECUTE FUNCTION "api_keys_guard"();
--> statement-breakpoint
CREATE FUNCTION "refuse_change"() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	RAISE EXCEPTION '% refuses %', TG_TABLE_NAME, TG_OP USING ERRCODE = 'integrity_constraint_violation';
END
$$;
--> statement-breakpoint
-- A key is revoked, never deleted: its audit events, its usage and its id stay meaningful.
CREATE TRIGGER "api_keys_keep" BEFORE DELETE OR TRUNCATE ON "api_keys" FOR EACH STATEMENT EXECUTE FUNCTION "refuse_change"();
--> statement-breakpoint
CREATE TRIGGER "audit_events_append_only" BEFORE UPDATE OR DELETE OR TRUNCATE ON "audit_events" FOR EACH STATEMENT EXECUTE FUNCTION "refuse_change"();
--> statement-breakpoint
INSERT INTO "workspaces" ("id") VALUES ('system');
