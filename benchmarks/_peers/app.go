// The program that peers.py stops: the work of app.py on net/http, ended as the documentation of Server.Shutdown
// shows. The argument is the port.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"
)

const grace = 19 * time.Second // peers.py allows twenty

var large = strings.Repeat("x", 8<<20)

func pause(request *http.Request, parts float64) {
	seconds, _ := strconv.ParseFloat(request.URL.Query().Get("s"), 64)
	time.Sleep(time.Duration(seconds / parts * float64(time.Second)))
}

func text(body string) http.HandlerFunc {
	return func(response http.ResponseWriter, _ *http.Request) { io.WriteString(response, body) }
}

func slow(response http.ResponseWriter, request *http.Request) {
	pause(request, 1)
	io.WriteString(response, "slow")
}

func stream(response http.ResponseWriter, request *http.Request) {
	for number := 0; number < 10; number++ {
		fmt.Fprintf(response, "part %d\n", number)
		response.(http.Flusher).Flush()
		pause(request, 10)
	}
}

func upload(response http.ResponseWriter, request *http.Request) {
	body, err := io.ReadAll(request.Body)
	if err != nil {
		http.Error(response, err.Error(), http.StatusBadRequest)
		return
	}
	fmt.Fprint(response, len(body))
}

func main() {
	file, err := os.CreateTemp("", "peers-")
	if err != nil {
		log.Fatal(err)
	}
	defer os.Remove(file.Name())
	file.WriteString(large)

	http.HandleFunc("/fast", text("fast"))
	http.HandleFunc("/slow", slow)
	http.HandleFunc("/stream", stream)
	http.HandleFunc("/upload", upload)
	http.HandleFunc("/large", text(large))
	http.HandleFunc("/file", func(response http.ResponseWriter, request *http.Request) {
		http.ServeFile(response, request, file.Name())
	})
	http.HandleFunc("/health", text("ok"))

	server := http.Server{Addr: "127.0.0.1:" + os.Args[1]}
	stopped := make(chan struct{})
	go func() {
		terminated := make(chan os.Signal, 1)
		signal.Notify(terminated, syscall.SIGTERM)
		<-terminated
		ctx, cancel := context.WithTimeout(context.Background(), grace)
		defer cancel()
		if err := server.Shutdown(ctx); err != nil {
			log.Print(err)
		}
		close(stopped)
	}()
	if err := server.ListenAndServe(); !errors.Is(err, http.ErrServerClosed) {
		log.Fatal(err)
	}
	<-stopped
}
