-- What access tokens are signed with, and which of them were revoked. Generated from src/storage/schema.ts.
CREATE TABLE "revoked_tokens" (
	"jti" uuid PRIMARY KEY NOT NULL,
	"expires_at" timestamp (3) with time zone NOT NULL
);
--> statement-breakpoint
CREATE TABLE "signing_keys" (
	"kid" text PRIMARY KEY NOT NULL,
	"sealed" "bytea" NOT NULL,
	"secret_id" smallint NOT NULL,
	"signs_from" timestamp (3) with time zone NOT NULL,
	CONSTRAINT "signing_keys_kid_form" CHECK ("signing_keys"."kid" ~ '^[A-Za-z0-9_-]{43}$')
);
--> statement-breakpoint
ALTER TABLE "signing_keys" ADD CONSTRAINT "signing_keys_secret_id_key_secrets_id_fk" FOREIGN KEY ("secret_id") REFERENCES "public"."key_secrets"("id") ON DELETE no action ON UPDATE no action;--> statement-breakpoint
CREATE INDEX "revoked_tokens_expires_at" ON "revoked_tokens" USING btree ("expires_at");