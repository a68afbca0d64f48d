-- A key's predecessor and successor. Generated; from "By hand" on, written.
ALTER TABLE "api_keys" ADD COLUMN "rotated_from" uuid;--> statement-breakpoint
ALTER TABLE "api_keys" ADD COLUMN "rotated_to" uuid;--> statement-breakpoint
ALTER TABLE "api_keys" ADD CONSTRAINT "api_keys_rotated_from_api_keys_id_fk" FOREIGN KEY ("rotated_from") REFERENCES "public"."api_keys"("id") ON DELETE no action ON UPDATE no action;--> statement-breakpoint
ALTER TABLE "api_keys" ADD CONSTRAINT "api_keys_rotated_to_api_keys_id_fk" FOREIGN KEY ("rotated_to") REFERENCES "public"."api_keys"("id") ON DELETE no action ON UPDATE no action;--> statement-breakpoint
CREATE UNIQUE INDEX "api_keys_rotated_from" ON "api_keys" USING btree ("rotated_from") WHERE "api_keys"."rotated_from" IS NOT NULL;--> statement-breakpoint
ALTER TABLE "api_keys" ADD CONSTRAINT "api_keys_rotated_to_end" CHECK ("api_keys"."rotated_to" IS NULL OR "api_keys"."revoked_at" IS NOT NULL OR "api_keys"."expires_at" IS NOT NULL);--> statement-breakpoint

-- By hand: what a rotation has tied together stays so.
CREATE OR REPLACE FUNCTION "api_keys_guard"() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	IF OLD.revoked_at IS NOT NULL
		AND (NEW.revoked_at, NEW.revoked_reason) IS DISTINCT FROM (OLD.revoked_at, OLD.revoked_reason) THEN
		RAISE EXCEPTION 'a revocation is permanent' USING ERRCODE = 'integrity_constraint_violation';
	END IF;
	-- The hash belongs to the id, and the token that was handed out names id, prefix and environment.
	IF (NEW.id, NEW.workspace_id, NEW.environment, NEW.prefix, NEW.last_characters, NEW.secret_id, NEW.created_at, NEW.rotated_from)
		IS DISTINCT FROM
		(OLD.id, OLD.workspace_id, OLD.environment, OLD.prefix, OLD.last_characters, OLD.secret_id, OLD.created_at, OLD.rotated_from) THEN
		RAISE EXCEPTION 'a key never changes its id, workspace, environment or origin' USING ERRCODE = 'integrity_constraint_violation';
	END IF;
	IF OLD.rotated_to IS NOT NULL AND NEW.rotated_to IS DISTINCT FROM OLD.rotated_to THEN
		RAISE EXCEPTION 'a key has one successor, for ever' USING ERRCODE = 'integrity_constraint_violation';
	END IF;
	RETURN NEW;
END
$$;
