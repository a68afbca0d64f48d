-- Who may answer from memory, and what they have dropped from it. By hand: UNLOGGED, and the guard.
CREATE UNLOGGED TABLE "acknowledgements" (
	"change_id" uuid NOT NULL,
	"instance_id" uuid NOT NULL,
	"at" timestamp (3) with time zone DEFAULT now() NOT NULL,
	CONSTRAINT "acknowledgements_change_id_instance_id_pk" PRIMARY KEY("change_id","instance_id")
);
--> statement-breakpoint
CREATE TABLE "instances" (
	"id" uuid PRIMARY KEY NOT NULL,
	"lease_ms" integer NOT NULL,
	"fenced" boolean DEFAULT false NOT NULL,
	"released" boolean DEFAULT false NOT NULL,
	"renewed_at" timestamp (3) with time zone DEFAULT now() NOT NULL,
	CONSTRAINT "instances_lease_form" CHECK ("instances"."lease_ms" > 0)
);
--> statement-breakpoint
CREATE UNLOGGED TABLE "verified_secrets" (
	"key_id" uuid PRIMARY KEY NOT NULL,
	"mac" "bytea" NOT NULL
);
--> statement-breakpoint

-- A row counts until it is released, a fence never ends, and an id is never another's.
CREATE FUNCTION "instances_guard"() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	IF TG_OP = 'DELETE' THEN
		IF NOT OLD.released THEN
			RAISE EXCEPTION 'an instance that is not released still counts' USING ERRCODE = 'integrity_constraint_violation';
		END IF;
		RETURN OLD;
	END IF;
	IF NEW.id <> OLD.id OR NEW.lease_ms <> OLD.lease_ms OR (OLD.fenced AND NOT NEW.fenced) OR (OLD.released AND NOT NEW.released) THEN
		RAISE EXCEPTION 'an instance keeps its id, its lease, its fence and its release' USING ERRCODE = 'integrity_constraint_violation';
	END IF;
	RETURN NEW;
END
$$;
--> statement-breakpoint
CREATE TRIGGER "instances_guard" BEFORE UPDATE OR DELETE ON "instances" FOR EACH ROW EXECUTE FUNCTION "instances_guard"();
--> statement-breakpoint
CREATE TRIGGER "instances_keep" BEFORE TRUNCATE ON "instances" FOR EACH STATEMENT EXECUTE FUNCTION "refuse_change"();
--> statement-breakpoint
-- Renewed every few seconds: room for the new version of a row beside the old one.
ALTER TABLE "instances" SET (fillfactor = 50);
